"""The roll call: processes that fit, and those that do not, each told in one line."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments.distributed import spell_shared
from experiments.harness import main
from experiments.predict import predict
from experiments.roll_call import answer_roll, call_roll
from tests.loopback import find_port


def meet(count: int, *others: tuple[int, int], seconds: float = 5) -> list[str]:
    """What process 0 and others, as (index, limit), hear: nothing if all is well."""
    port = find_port()

    def list_options(limit: int) -> dict[str, str]:
        return {"seed": "--seed 0", "limit": f"--limit {limit}"}

    def hear(function, *arguments) -> str:
        try:
            function(*arguments, seconds)
        except OSError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        # The others begin, and find nobody at first.
        futures = [
            pool.submit(
                hear, answer_roll, "localhost", port, index, count, list_options(limit)
            )
            for index, limit in others
        ]
        time.sleep(0.05)
        first = hear(call_roll, port, count, list_options(4))
        return [first, *(x.result() for x in futures)]


def test_processes_that_fit_together_meet():
    assert meet(1) == [""]
    assert meet(4, (3, 4), (1, 4), (2, 4)) == [""] * 4


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            [(1, 4), (2, 2)],
            "process 0 has --limit 4, process 2 has --limit 2: give all the same",
        ),
        ([(2, 4), (2, 4)], "--process-index 2 was given to two processes"),
        ([(0, 4)], "--process-index 0 was given to two processes"),
    ],
)
def test_those_that_do_not_fit_are_named_to_all(others, message):
    heard = meet(3, *others, seconds=2)
    assert message in heard[0]
    assert sum(message in line for line in heard) >= 2
    assert all(heard)


def test_those_that_do_not_come_are_named():
    first, second = meet(4, (2, 4), seconds=0.5)
    assert first == "not all 4 processes connected within 0.5 s; missing: [1, 3]"
    assert second.startswith("not all 4 processes connected within 0.5 s")


def test_strangers_are_ignored():
    port = find_port()
    with ThreadPoolExecutor() as pool:
        future = pool.submit(call_roll, port, 2, {}, 5)
        for words in (b"GET / HTTP/1.1\r\n", b"1\n", b""):
            time.sleep(0.05)
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(words)
        answer_roll("localhost", port, 1, 2, {}, 5)
        assert future.result() is None


def test_a_run_that_has_all_its_processes_takes_no_other():
    with socket.create_server(("localhost", 0)) as server:

        def speak() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\xff\n")

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(OSError, match="may have all its processes"):
            answer_roll("localhost", server.getsockname()[1], 1, 2, {}, 5)


def test_a_command_tells_its_options(tmp_path, capsys, monkeypatch):
    def call(port: int, count: int, options: dict[str, str], seconds: int) -> None:
        assert (port, count, seconds) == (5000, 2, 300)
        assert options["limit"] == "--limit 60" and options["k"] == "--k 5"
        raise OSError("it is refused")

    monkeypatch.setattr("experiments.distributed.call_roll", call)
    words = ["--coordinator", "host:5000", "--process-count", "2", "--limit", "60"]
    assert main(predict, [*words, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: --coordinator host:5000: it is refused\n"


def test_files_are_known_by_their_content_and_folders_by_their_name(tmp_path):
    def spell(folder: str, content: bytes, **options: object) -> dict[str, str]:
        (tmp_path / folder / "images").mkdir(parents=True, exist_ok=True)
        file = tmp_path / folder / "a.safetensors"
        file.write_bytes(content)
        paths = {"image": tmp_path / folder / "images", "out": tmp_path / folder}
        return spell_shared({"weights": (str(file), "vgg16"), **paths, **options})

    one = spell("1", b"a", limit=None, process_index=0, layers=())
    assert one == spell("2", b"a", limit=None, process_index=1, layers=())
    assert one["weights"] == "--weights a.safetensors (digest bf5d3affb73e) vgg16"
    assert (one["limit"], one["layers"]) == ("no --limit", "no --layers")
    assert one != spell("2", b"b", limit=None, process_index=1, layers=())
