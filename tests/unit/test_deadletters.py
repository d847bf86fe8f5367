"""Dead letters are shown as they are, and replayed once, wherever a replay dies."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from pageturn.__main__ import main
from pageturn.deadletters import Replayed, letters_in, readable, replay_letters, replayed
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.events import encode
from pipeline.logs.files import FileLog, partition_of
from pipeline.logs.log import DEAD_LETTERS, EVENTS, Entry, LogError
from pipeline.records import DeadLetter, DecidedBy, Decision, Feedback, FeedbackKind, Impression, Item, State
from pipeline.streaming.outputs import read_all

CONFIG = Path(__file__).resolve().parents[2] / "feature_configs" / "ebnerd.yaml"
T0 = 1_700_000_000_000
HOUR_MS = 3_600_000
CLICK = encode(Feedback(1, "e", "r", "u", "s", T0 + HOUR_MS, FeedbackKind.CLICK, "i"))


@pytest.fixture
def config() -> FeatureConfig:
    return load_config(CONFIG)


class Place:
    """A log whose clock stands, with dead letters in it."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = T0
        self.url = f"file://{folder}/log"
        self.log = FileLog(folder / "log", clock_ms=lambda: self.now_ms)
        for topic in (EVENTS, DEAD_LETTERS):
            self.log.create(topic, 2)

    def letter(self, number: int, payload: bytes = CLICK, key: str = "s", reason: str = "future_time") -> DeadLetter:
        letter = DeadLetter(f"0:{number}", reason, "what was wrong", T0, key, payload)
        self.log.append(DEAD_LETTERS, [Entry(key, encode(letter))])
        return letter

    def events(self) -> list[tuple[str, bytes]]:
        return sorted((record.key, record.payload) for record in read_all(self.log, EVENTS))

    def replay(self, config: FeatureConfig) -> Replayed:
        return replay_letters(self.log, letters_in(self.log), config.stream, T0 + HOUR_MS)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# Replaying ---------------------------------------------------------------------------------------------------------


def test_the_bytes_go_back_under_their_key_and_only_once(place: Place, config: FeatureConfig) -> None:
    letters = [place.letter(i, b" " * i + CLICK, key=f"k{i}") for i in range(450)]  # several batches
    assert place.replay(config) == Replayed(450, 0, Counter(), 0)
    assert place.replay(config) == Replayed(0, 450, Counter(), 0)
    assert place.events() == sorted((letter.key, letter.payload) for letter in letters)
    assert {record.partition for record in read_all(place.log, EVENTS)} == {0, 1}


def test_a_letter_that_is_in_the_topic_twice_is_one(place: Place, config: FeatureConfig) -> None:
    place.letter(1)
    place.letter(1)
    assert place.replay(config).sent == 1


def test_two_letters_with_the_same_bytes_are_two(place: Place, config: FeatureConfig) -> None:
    place.letter(1)
    place.letter(2)
    assert place.replay(config).sent == 2
    assert len(place.events()) == 2


def test_what_would_be_refused_again_stays_where_it_is(place: Place, config: FeatureConfig) -> None:
    place.letter(1, b"{")
    place.letter(2, encode(msgspec.json.decode(CLICK) | {"time_ms": T0 + HOUR_MS + config.stream.max_ahead + 1}))
    place.letter(3, b" " * config.stream.max_event_bytes + CLICK)
    assert place.replay(config).refused == {"malformed": 1, "future_time": 1, "oversized": 1}
    assert place.events() == []


def test_a_transition_that_the_trainer_refused_is_no_event(place: Place, config: FeatureConfig) -> None:
    letter = DeadLetter("transitions/0:7", "malformed", "", T0, "s", CLICK)
    place.log.append(DEAD_LETTERS, [Entry("s", encode(letter))])
    assert place.replay(config) == Replayed(0, 0, Counter(), 1)
    assert place.events() == []


class Dying:
    """The log of a process that dies in an append, with some of it done."""

    def __init__(self, log: FileLog, topic: str, after: int, partly: int) -> None:
        self._log, self._topic, self._after, self._partly = log, topic, after, partly

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, topic: str, entries: list[Entry]) -> None:
        if topic == self._topic:
            self._after -= 1
            if self._after < 0:
                self._log.append(topic, entries[: self._partly])
                raise LogError(topic)
        self._log.append(topic, entries)


@pytest.mark.parametrize(
    ("topic", "after", "partly"),
    [("replays", 0, 0), (EVENTS, 0, 0), (EVENTS, 0, 1), (EVENTS, 0, 3), ("replays", 1, 0), ("replays", 1, 1)],
)
def test_a_replay_that_died_is_finished_by_the_next(
    place: Place, config: FeatureConfig, topic: str, after: int, partly: int
) -> None:
    place.log.append(EVENTS, [Entry("s", CLICK)])  # the same bytes, from before
    letters = [place.letter(i) for i in range(2)] + [place.letter(2, b" " + CLICK)]
    with pytest.raises(LogError):
        replay_letters(Dying(place.log, topic, after, partly), letters, config.stream, T0 + HOUR_MS)
    done = place.replay(config)
    assert done.sent + done.before == 3
    assert place.events() == sorted([("s", CLICK)] + [(letter.key, letter.payload) for letter in letters])
    assert place.replay(config) == Replayed(0, 3, Counter(), 0)
    assert replayed(place.log) == {"0:0", "0:1", "0:2"}
    assert "; 3 replayed" in command(f"show --log {place.url}").output


class Overtaken:
    """The log of a replay that looks for what was sent before, and is overtaken by another replay then."""

    def __init__(self, log: FileLog, other: Callable[[], object]) -> None:
        self._log, self._other = log, other

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, topic: str, entries: list[Entry]) -> None:
        other, self._other = self._other, lambda: None
        other()
        self._log.append(topic, entries)


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_replayed_letter_is_one_more_event_read_and_the_balance_holds(
    place: Place, config: FeatureConfig, tmp_path: Path, overtaken: bool
) -> None:
    from pipeline.streaming.run import run_stream

    def stream():
        clock = {"clock_ms": lambda: place.now_ms + 1_000_000_000}
        return run_stream(config, place.url, tmp_path / "state", until_idle=True, stop=threading.Event(), **clock)

    page = Impression(
        1, "r", "u", "s", T0 + HOUR_MS, 0, (Item("i"),), State(), Decision(DecidedBy.BASELINE, "base", "control")
    )
    place.log.append(EVENTS, [Entry("s", encode(page)), Entry("s", CLICK), Entry("s", b"junk")])
    first = stream()
    assert (first.read, first.dead, first.joined) == (3, 3, 0)
    place.now_ms = T0 + HOUR_MS  # what was the future is the present
    log = Overtaken(place.log, lambda: place.replay(config)) if overtaken else place.log
    assert replay_letters(log, letters_in(place.log), config.stream, place.now_ms) == (2, 0, {"malformed": 1}, 0)
    second = stream()
    twice = 2 if overtaken else 0
    assert (second.read, second.dead) == (5 + twice, 3)  # a letter stays the dead letter that it was
    assert (second.joined, second.duplicate) == (2, twice)
    assert second.read == second.joined + second.duplicate + second.late + second.orphan + second.dead + second.open


# The commands ------------------------------------------------------------------------------------------------------


def command(line: str) -> Result:
    return CliRunner().invoke(main, ["deadletters", *line.split()])


def test_letters_are_shown_with_reason_detail_and_bytes(place: Place) -> None:
    place.letter(1, b'{"user": "\xc3\xa9\xff\x1b[2J"}\n', reason="malformed")
    shown = command(f"show --log {place.url}").output.splitlines()
    assert re.fullmatch(r"0:1  malformed  2023-11-14 22:13:20\.000\+00:00  key 's'  20 bytes", shown[0])
    assert [line.strip() for line in shown[1:3]] == ["what was wrong", r'{"user": "é\xff\x1b[2J"}\n']
    assert shown[3] == "1 dead letters: 1 malformed; 0 replayed"


def test_the_latest_letters_with_a_reason_are_shown(place: Place) -> None:
    for number in range(6):
        place.letter(number, reason=("malformed", "oversized")[number % 2])
    shown = command(f"show --log {place.url} --reason oversized --limit 2").output
    assert re.findall(r"^(0:\d)  ", shown, re.MULTILINE) == ["0:3", "0:5"]
    assert "6 dead letters: 3 malformed, 3 oversized" in shown


def test_long_letters_are_shown_in_full_if_asked(place: Place) -> None:
    place.letter(1, b"x" * 5_000)
    assert "x" * 2_000 + "...\n" in command(f"show --log {place.url}").output
    assert "x" * 5_000 + "\n" in command(f"show --log {place.url} --full").output
    assert readable(b"ab", 2) == "ab"


def test_the_command_replays_what_is_chosen_and_show_says_so(place: Place) -> None:
    for number in range(3):
        place.letter(number, reason=("future_time", "oversized")[number % 2])
    replay = f"replay --config {CONFIG} --log {place.url}"
    assert command(f"{replay} --id 0:0").output == "1 replayed\n"
    assert command(f"{replay} --reason future_time").output == "1 replayed, 1 had been replayed before\n"
    assert len(place.events()) == 2
    shown = command(f"show --log {place.url}").output
    assert [line[:3] for line in shown.splitlines() if line.endswith("replayed") and "  key" in line] == ["0:0", "0:2"]
    assert "; 2 replayed" in shown


def test_mistakes_are_explained(place: Place) -> None:
    place.letter(1)
    replay = f"replay --config {CONFIG} --log {place.url}"
    assert "expected --reason or --id" in command(replay).output
    unknown = command(f"{replay} --reason future_time --id 9:9")
    assert (unknown.exit_code, place.events()) == (1, [])
    assert "no dead letter 9:9; `pageturn deadletters show` prints their ids" in unknown.output


def test_the_key_decides_the_partition(place: Place, config: FeatureConfig) -> None:
    place.letter(1, key="agent-3")
    place.replay(config)
    (record,) = read_all(place.log, EVENTS)
    assert record.partition == partition_of("agent-3", 2)
