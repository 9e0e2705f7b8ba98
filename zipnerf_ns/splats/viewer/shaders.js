// What the graphics card computes: a scene's images decoded, colors from a direction, and Gaussians as pixels.
"use strict";

const DECODING = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D meansLow, meansHigh, scales, quats, sh0, codebooks;
uniform vec3 lowest, highest, eye;
vec3 place(ivec2 at) {
  vec3 share = (texelFetch(meansLow, at, 0).rgb + 256.0 * texelFetch(meansHigh, at, 0).rgb) * 255.0 / 65535.0;
  vec3 value = mix(lowest, highest, share);
  return sign(value) * (exp(abs(value)) - 1.0);
}
vec3 decode(int book, vec3 codes) {
  ivec3 at = ivec3(codes * 255.0 + 0.5);
  return vec3(texelFetch(codebooks, ivec2(at.r, book), 0).r, texelFetch(codebooks, ivec2(at.g, book), 0).r,
              texelFetch(codebooks, ivec2(at.b, book), 0).r);
}
`;

const WHOLE_TEXTURE = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }
`;

// Half of every Gaussian's color from where the eye is, one fragment each: what lies behind others may be above 1.
const colorShader = (bands) => `${DECODING}
uniform sampler2D labels, sets;
out vec4 result;
const int TERMS = ${(bands + 1) ** 2 - 1};
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  vec3 color = 0.5 + 0.28209479177387814 * decode(1, texelFetch(sh0, at, 0).rgb);
  ${bands > 0 ? `
  vec3 d = normalize(place(at) - eye);
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  float basis[15] = float[15](
    -0.4886025119 * y, 0.4886025119 * z, -0.4886025119 * x,
    1.0925484306 * x * y, -1.0925484306 * y * z, 0.9461746958 * zz - 0.3153915653, -1.0925484306 * x * z,
    0.5462742153 * (xx - yy),
    -0.5900435899 * y * (3.0 * xx - yy), 2.8906114426 * x * y * z, -0.4570457995 * y * (5.0 * zz - 1.0),
    0.3731763326 * z * (5.0 * zz - 3.0), -0.4570457995 * x * (5.0 * zz - 1.0), 1.4453057213 * z * (xx - yy),
    -0.5900435899 * x * (xx - 3.0 * yy));
  ivec2 label = ivec2(texelFetch(labels, at, 0).rg * 255.0 + 0.5);
  int set = label.x + 256 * label.y;
  ivec2 start = ivec2((set % 64) * TERMS, set / 64);
  for (int i = 0; i < TERMS; i++) color += basis[i] * decode(2, texelFetch(sets, start + ivec2(i, 0), 0).rgb);
  ` : ""}
  result = vec4(0.5 * color, 1.0);
}
`;

// One Gaussian as four corners around its projection, EWA splatting as in gsplat's fully_fused_projection.
const DRAWING = `${DECODING}
uniform sampler2D colors;
uniform mat3 toCamera; // right, down, forward
uniform vec2 size; // of the canvas, pixels
uniform float focal;
uniform bool antialiased;
in uint index;
out vec2 offset; // in standard deviations
flat out vec4 color;
void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0); // nowhere, until it is known to be seen
  int width = textureSize(meansLow, 0).x;
  ivec2 at = ivec2(int(index) % width, int(index) / width);
  vec3 p = toCamera * (place(at) - eye);
  if (p.z <= 0.01) return; // the near plane, as in viewer.js

  vec4 code = texelFetch(quats, at, 0);
  vec3 part = (code.rgb - 0.5) * 1.4142135624;
  float rest = sqrt(max(0.0, 1.0 - dot(part, part)));
  int largest = int(code.a * 255.0 + 0.5) - 252;
  vec4 q = largest == 0 ? vec4(rest, part) : largest == 1 ? vec4(part.x, rest, part.yz)
         : largest == 2 ? vec4(part.xy, rest, part.z) : vec4(part, rest); // w, x, y, z
  mat3 turn = mat3(
    1.0 - 2.0 * (q.z * q.z + q.w * q.w), 2.0 * (q.y * q.z + q.x * q.w), 2.0 * (q.y * q.w - q.x * q.z),
    2.0 * (q.y * q.z - q.x * q.w), 1.0 - 2.0 * (q.y * q.y + q.w * q.w), 2.0 * (q.z * q.w + q.x * q.y),
    2.0 * (q.y * q.w + q.x * q.z), 2.0 * (q.z * q.w - q.x * q.y), 1.0 - 2.0 * (q.y * q.y + q.z * q.z));
  vec3 deviation = exp(decode(0, texelFetch(scales, at, 0).rgb));
  mat3 axes = toCamera * turn * mat3(deviation.x, 0, 0, 0, deviation.y, 0, 0, 0, deviation.z);

  // Beside the picture the projection's slope grows without end: it is taken from the border instead.
  vec2 limit = 0.65 * size / focal;
  vec2 slope = clamp(p.xy / p.z, -limit, limit);
  vec3 right = transpose(axes) * vec3(1.0, 0.0, -slope.x) * (focal / p.z);
  vec3 down = transpose(axes) * vec3(0.0, 1.0, -slope.y) * (focal / p.z);
  float a = dot(right, right), b = dot(right, down), c = dot(down, down);
  float before = a * c - b * b;
  a += 0.3; // a pixel's filter
  c += 0.3;
  color = vec4(2.0 * texelFetch(colors, at, 0).rgb, texelFetch(sh0, at, 0).a);
  if (antialiased) color.a *= sqrt(max(0.0, before / max(a * c - b * b, 1e-10)));
  if (color.a < 1.0 / 255.0) return;

  float middle = 0.5 * (a + c), spread = length(vec2(0.5 * (a - c), b)), angle = 0.5 * atan(2.0 * b, a - c);
  vec2 axis = vec2(cos(angle), sin(angle));
  // As far as it changes a pixel by one of 255 steps.
  offset = (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0) * sqrt(2.0 * log(255.0 * color.a));
  vec2 pixel = focal * p.xy / p.z + offset.x * sqrt(middle + spread) * axis
             + offset.y * sqrt(max(middle - spread, 0.0)) * vec2(-axis.y, axis.x);
  gl_Position = vec4(pixel * vec2(2.0, -2.0) / size, 0.0, 1.0);
}
`;

const BLENDING = `#version 300 es
precision highp float;
in vec2 offset;
flat in vec4 color;
out vec4 result;
void main() {
  float alpha = min(0.999, color.a * exp(-0.5 * dot(offset, offset)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(color.rgb * alpha, alpha);
}
`;
