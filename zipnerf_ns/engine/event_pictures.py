"""Pictures of an evaluation on their way into TensorBoard's file, beside the training.

To compress those of one evaluation takes a second or more, in which Python can launch hundreds of steps: Pillow lets it
go on meanwhile.
"""

from __future__ import annotations

from typing import Any

# Not from where it lies: the two modules import each other, and only this one may come first.
from nerfstudio.configs.base_config import writer

Event = Any
"""A dictionary, as Nerfstudio's writer keeps it. (A checker of types that draws entries at random, as the tests' does,
would draw by another thread, and from the generator that training resumes with.)"""


def take_pictures() -> list[Event]:
    """Takes the pictures out of Nerfstudio's waiting events; none if some writer is not TensorBoard's.

    Others want their events in the order of the steps, which pictures that come later would break.
    """
    known = (writer.TensorboardWriter, writer.LocalWriter)
    if not all(isinstance(event_writer, known) for event_writer in writer.EVENT_WRITERS):
        return []
    waiting = writer.EVENT_STORAGE
    # From behind and one by one: another thread may add events at the end.
    numbers = [index for index, event in enumerate(waiting) if event["write_type"] is writer.EventType.IMAGE]
    return [waiting.pop(index) for index in reversed(numbers)][::-1]


def write_pictures(pictures: list[Event]) -> None:
    """Writes what :func:`take_pictures` took."""
    for event in pictures:
        for event_writer in writer.EVENT_WRITERS:
            if isinstance(event_writer, writer.TensorboardWriter):
                event_writer.write_image(event["name"], event["event"], event["step"])
