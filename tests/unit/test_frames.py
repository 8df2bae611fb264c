"""What a server says is bounded before the driver holds it, wherever the network cuts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.adapters.postgres.wire.frames import ANSWER_BYTES, FRAME_BYTES, Frames
from matview_operator.domain.errors import Problem

READY = b"Z\0\0\0\x05I"


def frame(kind: bytes, payload: bytes) -> bytes:
    return kind + (len(payload) + 4).to_bytes(4, "big") + payload


def error(message: bytes) -> bytes:
    return frame(b"E", b"SERROR\0VERROR\0C22012\0M" + message + b"\0Ddetail\0\0")


def admitted(*chunks: bytes) -> bytes:
    frames = Frames()
    return b"".join(frames.admit(chunk) for chunk in chunks)


def fields(answer: bytes) -> dict[str, str]:
    """Read an error as a driver does."""
    assert answer[:1] == b"E"
    assert int.from_bytes(answer[1:5], "big") == len(answer) - 1
    assert answer.endswith(b"\0\0")
    return {field[:1].decode(): field[1:].decode() for field in answer[5:].split(b"\0") if field}


ORDINARY = (
    frame(b"1", b"")
    + frame(b"T", b"\0\x01name\0" + bytes(18))
    + frame(b"D", b"\0\x01\0\0\0\x02ab") * 3
    + frame(b"C", b"SELECT 3\0")
    + READY
)
UNHEARD = (
    frame(b"N", b"SNOTICE\0Mhello\0\0")
    + frame(b"A", b"\0\0\0\x01channel\0text\0")
    + frame(b"S", b"TimeZone\0UTC\0")
    + frame(b"S", b"x" * 5000)
)
ENCODING = frame(b"S", b"client_encoding\0UTF8\0")


@given(st.lists(st.integers(0, 60), max_size=12))
def test_only_what_is_read_is_handed_on_wherever_it_is_cut(cuts: list[int]) -> None:
    sent = ORDINARY[:20] + ORDINARY[20:] + UNHEARD + ENCODING + error(b"short") + READY
    frames, handed_on, at = Frames(), b"", 0
    for cut in [*cuts, len(sent)]:
        handed_on += frames.admit(sent[at : at + cut])
        at += cut
    handed_on += frames.admit(sent[at:])
    assert handed_on == ORDINARY + ENCODING + error(b"short") + READY


def test_an_ordinary_answer_is_handed_on_uncopied() -> None:
    assert Frames().admit(ORDINARY) is ORDINARY


def test_a_huge_error_keeps_its_state_and_the_beginning_of_its_message() -> None:
    answer = admitted(error("ä".encode() * 1_000_000) + READY)
    assert answer.endswith(READY)
    told = fields(answer.removesuffix(READY))
    assert (told["S"], told["C"]) == ("ERROR", "22012")
    assert told["M"].startswith("ää")
    assert len(answer) < 10_000


@pytest.mark.parametrize("cut", range(8_150, 8_200))
def test_a_shortened_error_is_whole_wherever_it_is_cut(cut: int) -> None:
    """The cut may fall into a character, before or after a field's end, or behind a field's letter."""
    start = b"SERROR\0C22012\0M"
    payload = start + "€".encode() * ((cut - len(start)) // 3) + b"\0Dx\0Hy\0" + b"z" * 100_000 + b"\0\0"
    assert fields(admitted(frame(b"E", payload)))["C"] == "22012"


def test_a_frame_that_announces_more_than_a_row_of_ours_is_refused_before_it_comes() -> None:
    with pytest.raises(Problem, match="1048577 bytes"):
        Frames().admit(b"D" + (FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(Problem, match="sent a message of 3 bytes"):
        Frames().admit(b"D\0\0\0\x03")


@pytest.mark.parametrize(
    "endless", [frame(b"D", b"\0\0"), frame(b"D", b"x" * 100_000), UNHEARD, error(b"again"), error(b"x" * 200_000)]
)
def test_no_answer_is_endless(endless: bytes) -> None:
    frames = Frames()

    def listen() -> None:
        for _ in range(ANSWER_BYTES // 50):
            frames.admit(endless)

    with pytest.raises(Problem, match="more than 16 MiB"):
        listen()


def test_each_statement_has_an_answer_of_its_own() -> None:
    frames = Frames()
    for _ in range(40):
        assert frames.admit(frame(b"D", b"x" * 1_000_000))
        frames.admit(READY)
