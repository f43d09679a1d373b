"""Files: every byte counts, whatever is wrong is told and the file stays as it was; paths are checked before a run."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import random
import socket
import stat
import subprocess
import sys
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

import scoretk as stk
from scoretk.core import files, locks, sealed
from scoretk.core.arrayfiles import read_array
from scoretk.learn import Recipe, fit
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.run import checkpoint

FIELD = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
FLIPS = 500


class Stop(Exception):
    """Ends a run in the middle."""


def run(path, **changes):
    options = {"chains": 3, "steps": 12, "warmup": 4, "batch": 2, "seed": 1} | changes
    return stk.sample(FIELD, stk.HMC(leapfrogs=2), checkpoint=path, **options)


def stopped_run(path):
    """A checkpoint with one batch done and another in flight."""
    calls = []

    def energy(x):
        calls.append(len(x))
        if sum(n == 1 for n in calls) > 20:
            raise Stop
        return x.square().sum(1) / 2

    with pytest.raises(Stop):
        stk.sample(
            stk.Energy(energy, (2,)),
            stk.ULA(0.1),
            checkpoint=path,
            chains=3,
            steps=40,
            batch=2,
            seed=1,
        )


def resumed(path):
    calls = []

    def energy(x):
        calls.append(len(x))
        if sum(n == 1 for n in calls) > 20:
            raise Stop
        return x.square().sum(1) / 2

    return stk.sample(
        stk.Energy(energy, (2,)), stk.ULA(0.1), checkpoint=path, chains=3, steps=40, batch=2, seed=1
    )


def training(path):
    net = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
    net.load_state_dict({"weight": torch.tensor([[0.5, -0.2]]), "bias": torch.tensor([0.1])})
    data = torch.linspace(-1, 1, 24).reshape(12, 2)
    recipe = Recipe(steps=4, batch=4, evaluations=2, held_out=0.25, repeats=1)
    return fit(net, lambda x, _: net(x).square().sum(1), data, recipe, checkpoint=path)


def draws():
    return stk.sample(FIELD, stk.ULA(0.1), chains=2, steps=3)


WRITERS = {
    "run": run,
    "run in flight": stopped_run,
    "fit": training,
    "draws": lambda path: draws().save(path, force=True),
    "weights": lambda path: Stored(
        "m", {"width": 3}, {"a": torch.ones(2, 3), "mean": torch.zeros(2)}
    ).save(path),
}
READERS = {
    "run": run,
    "run in flight": resumed,
    "fit": training,
    "draws": stk.Draws.load,
    "weights": lambda path: read_weights(path, "m"),
}
REFUSED = {"draws": stk.InvalidArgument, "weights": stk.InvalidArgument}


@pytest.fixture(scope="module", params=WRITERS)
def written(request, tmp_path_factory):
    """The kind of a file, its path and its bytes."""
    path = tmp_path_factory.mktemp("sealed") / "file.safetensors"
    WRITERS[request.param](path)
    return request.param, path, path.read_bytes()


def accepted(kind, path, content):
    """Whether a file with this content is read; where it is refused, it is so as it should and stays as it was."""
    path.write_bytes(content)
    try:
        READERS[kind](path)
    except REFUSED.get(kind, stk.CheckpointError):
        assert path.read_bytes() == content
        assert [f.name for f in path.parent.iterdir()] == [path.name]
        return False
    return True


class TestEveryByteCounts:
    @pytest.mark.thorough
    def test_no_flipped_bit_is_accepted(self, written):
        kind, path, whole = written
        chance, found = random.Random(5), []
        header = 8 + int.from_bytes(whole[:8], "little")
        for i in range(FLIPS // len(WRITERS)):
            at, content = chance.randrange(8 * (header if i % 2 else len(whole))), bytearray(whole)
            content[at // 8] ^= 1 << at % 8
            if accepted(kind, path, bytes(content)):
                found.append(at)
        assert found == []

    @pytest.mark.slow
    def test_no_byte_at_all_can_change(self, written):
        kind, path, whole = written
        chance = random.Random(6)
        for at in range(len(whole)):
            content = bytearray(whole)
            content[at] ^= 1 << chance.randrange(8)
            assert not accepted(kind, path, bytes(content)), at

    def test_nothing_cut_appended_or_swapped_is_accepted(self, written):
        kind, path, whole = written
        half = len(whole) // 2
        for content in (
            b"",
            whole[:4],
            whole[:half],
            whole[:-1],
            whole + b"\0",
            whole[half:] + whole[:half],
            b"{}" * 40,
        ):
            assert not accepted(kind, path, content)
        path.write_bytes(whole)

    def test_what_was_written_is_read(self, written):
        kind, path, whole = written
        if kind != "run in flight":
            assert accepted(kind, path, whole)

    def test_a_seal_over_the_tensors_alone_would_be_seen(self, tmp_path, monkeypatch):
        """The mutant: as it was, with the header outside the checksum."""
        path = tmp_path / "c"
        run(path)
        whole = path.read_bytes()
        text = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
        monkeypatch.setattr(sealed, "_header", lambda text, kind, _: (sealed_header(text), None))
        moved = text.replace(b'\\"evaluations\\": ', b'\\"evaluations\\": 9')
        assert moved != text
        content = (len(moved)).to_bytes(8, "little") + moved + whole[8 + len(text) :]
        assert accepted("run", path, content)


def sealed_header(text):
    return json.loads(json.loads(text)["__metadata__"]["scoretk"])["header"]


def reseal(path, change, tensors=None):
    """The file again, with a valid seal over a header that somebody changed by hand."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["scoretk"])
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    header = change(about["header"])
    if tensors is not None:
        tensors(found)
    return sealed_bytes(about["kind"], found, header)


def sealed_bytes(kind, tensors, header, about=None):
    import hashlib

    about = {"format": 1, "kind": kind, "header": header} | (about or {})
    text = (
        json.dumps(about | {"seal": "0" * 64}) if not isinstance(header, bytes) else header.decode()
    )
    content = save(tensors, {"scoretk": text})
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode())


ODD = [
    None,
    True,
    False,
    -1,
    10**6,
    2**63,
    10**400,
    0.5,
    1.0,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "12",
    "nan",
    [],
    [1],
    [[]],
    {},
    {"step": 1},
    "\0",
    -0.0,
    [None],
    [-1],
    [True],
    [1.5],
    ["1"],
    [10**30],
    [1] * 50,
    {"": {}},
    [[[[[[1]]]]]],
]


def forged(header):
    """Headers that a hand could have made of one of a run in flight."""
    for key in header:
        yield {k: v for k, v in header.items() if k != key}
        yield header | {key + " ": header[key]}
        for odd in ODD:
            yield header | {key: odd}
    *before, now = header["batches"]
    yield header | {"batches": [*before, now, now]}
    yield header | {"batches": before}
    for key in now:
        if key != "alone":  # which older files do not say
            yield header | {"batches": [*before, {k: v for k, v in now.items() if k != key}]}
        for odd in ODD:
            known = key == "evaluations" and type(odd) is int and 0 <= odd < 2**63
            if not known and not (key == "alone" and isinstance(odd, bool)):
                yield header | {"batches": [*before, now | {key: odd}]}
    for key in (known := header["identity"]):
        yield header | {"identity": {k: v for k, v in known.items() if k != key}}
        yield from (header | {"identity": known | {key: odd}} for odd in ODD)
    for key in known["parts"]:
        yield header | {"identity": known | {"parts": known["parts"] | {key: "forged"}}}
    yield header | {"identity": known | {"changing": [*known["changing"], "field.fn"]}}
    for key in header["settings"]:
        yield header | {"settings": {k: v for k, v in header["settings"].items() if k != key}}
        yield header | {"settings": header["settings"] | {key: [header["settings"][key]]}}
    yield header | {"settings": header["settings"] | {"more": 1}}
    yield from (
        header | {"more": 1},
        [],
        3,
        "text",
        None,
        [header],
        {"settings": header["settings"]},
    )


class TestHeadersMadeByHand:
    @pytest.mark.thorough
    def test_none_is_accepted_and_nothing_leaks(self, tmp_path):
        path = tmp_path / "c"
        stopped_run(path)
        seen = []
        reseal(path, lambda header: seen.append(header) or header)
        headers = list(forged(seen[0]))
        assert len(headers) >= 200
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        wrong = [
            h for h in headers if accepted("run in flight", path, sealed_bytes("run", tensors, h))
        ]
        assert wrong == []

    @pytest.mark.parametrize(
        "text",
        [
            '{"format": 1, "kind": "run", "header": {}, "header": {}, "seal": "%s"}',
            "[]",
            "{",
            "null",
            "NaN",
            "3",
            '{"format": true, "kind": "run", "header": {}, "seal": "%s"}',
            "[" * 5000,
            '{"seal": "%s"}',
            "",
            '{"format": 2, "kind": "run", "header": {}, "seal": "%s"}',
            '{"format": 1, "kind": "run", "header": {}, "seal": 7}',
            '{"format": 1, "kind": {}, "header": {}, "seal": "%s"}',
            "9" * 9000,
        ],
    )
    def test_what_is_no_header_is_refused(self, tmp_path, text):
        content = sealed_bytes("run", {"x": torch.zeros(2)}, text.replace("%s", "0" * 64).encode())
        assert not accepted("run", tmp_path / "c", content)
        assert not accepted("draws", tmp_path / "c", content)

    @pytest.mark.parametrize("kind", ["run in flight", "draws", "fit"])
    def test_tensors_that_do_not_fit_are_refused(self, tmp_path, kind):
        path = tmp_path / "file.safetensors"
        WRITERS[kind](path)
        whole = path.read_bytes()

        def refused(change):
            path.write_bytes(whole)
            return not accepted(kind, path, reseal(path, lambda header: header, change))

        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        structure = [name for name in found if not (kind == "fit" and name != "structure")]
        for name in structure:
            value = found[name]
            others = {
                "longer": torch.cat([value, value]) if value.ndim else value[None],
                "deeper": value[None],
            }
            if "record" not in name and name != "x":
                others["of another kind"] = value.to(torch.int32)
                assert refused(lambda tensors, n=name: tensors.pop(n)), name
            for how, other in others.items():
                assert refused(lambda tensors, n=name, o=other: tensors.update({n: o})), (name, how)
        assert refused(lambda tensors: tensors.update({"more": torch.zeros(2)}))


class TestPlaces:
    """What can be told of a path is told before the run."""

    def makers(self, path):
        yield lambda: stk.sample(FIELD, stk.ULA(0.1), chains=2, steps=2, checkpoint=path)
        yield lambda: stk.Checkpoint(path)
        yield lambda: training(path)
        yield lambda: draws().save(path, force=True)
        yield lambda: stk.Draws.load(path)
        yield lambda: read_weights(path, "m")
        yield lambda: read_array(path)
        yield lambda: Stored("m", {}, {"a": torch.ones(1)}).save(path)

    @pytest.mark.parametrize(
        "name",
        [
            "a\0b",
            "n" * 300,
            "x/",
            "file/through",
            "loop",
            "folder",
            "nowhere/x",
            "\ud800",
            "",
            b"bytes",
            3,
            ("a",),
        ],
        ids=lambda n: repr(n)[:16],
    )
    def test_what_cannot_be_a_file_is_refused_at_once(self, tmp_path, name):
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "folder").mkdir()
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        path = f"{tmp_path}/{name}" if isinstance(name, str) and name else name
        if name == "folder":
            (tmp_path / "folder.npy").mkdir()
        for make in self.makers(path):
            with pytest.raises(stk.InvalidArgument):
                make()

    @pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
    def test_what_is_no_file_is_refused_at_once_and_not_waited_for(
        self, tmp_path, monkeypatch, kind
    ):
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        endings = (".safetensors", ".npy", ".csv", ".npz", "")
        for path in (Path("x" + ending) for ending in endings):
            if kind == "fifo":
                os.mkfifo(path)
            elif kind == "socket":
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.bind(str(path))
            else:
                path.symlink_to("/dev/zero")
            for make in self.makers(path):
                with pytest.raises(stk.InvalidArgument):
                    make()

    def test_a_name_as_long_as_there_are_is_written(self, tmp_path):
        path = tmp_path / ("n" * 255)
        assert torch.equal(run(path).x, run(path).x)

    def test_a_link_is_followed_and_stays(self, tmp_path):
        (tmp_path / "there").mkdir()
        link, target = tmp_path / "c", tmp_path / "there" / "target"
        link.symlink_to(target)  # dangling at first
        first = run(link).x
        assert link.is_symlink()
        assert target.is_file()
        inode = target.stat().st_ino
        assert torch.equal(run(link).x, first)
        assert link.is_symlink()
        assert target.stat().st_ino != inode
        assert os.listdir(tmp_path / "there") == ["target"]

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
    def test_permissions_are_kept(self, tmp_path, mode):
        path = tmp_path / "c"
        run(path)
        path.chmod(mode)
        run(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def test_what_another_process_has_cleared_meanwhile_keeps_nothing_else_there(
        self, tmp_path, monkeypatch
    ):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        (tmp_path / f".c.{gone.pid}.tmp").write_bytes(b"part")
        listed = os.listdir
        (tmp_path / f".c.{gone.pid}.1.tmp").mkdir()
        names = [".c.999999999.1.tmp", ".c.999999999.tmp"]  # of a process that is gone, and gone
        monkeypatch.setattr(files.os, "listdir", lambda folder: [*names, *listed(folder)])
        run(tmp_path / "c")
        monkeypatch.undo()
        assert os.listdir(tmp_path) == ["c"]

    def test_what_a_killed_run_left_is_cleared_and_that_of_a_living_one_is_not(self, tmp_path):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            path = tmp_path / "c"
            stays = [
                f".c.{alive.pid}.tmp",
                ".cc.1.tmp",
                ".c.tmp",
                ".c.12x.tmp",
                f"c.{gone.pid}.tmp",
            ]
            goes = [f".c.{gone.pid}.tmp", f".c.{os.getpid()}.tmp", ".c.99999999999999999999999.tmp"]
            for name in stays + goes:
                (tmp_path / name).write_bytes(b"part")
            folder = tmp_path / f".c.{gone.pid}.1.tmp"  # a folder on its way
            folder.mkdir()
            (folder / "part").write_bytes(b"part")
            run(path)
            assert sorted(os.listdir(tmp_path)) == sorted(["c", *stays])
        finally:
            alive.communicate(b"\n")

    def test_a_disk_that_refuses_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "c"
        run(path)
        before = path.read_bytes()

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(stk.CheckpointError, match="No space left"):
            run(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["c"]


def bytes_of(save, *arrays, **named):
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


ARRAYS = {
    ".npy": [
        bytes_of(np.save, a)
        for a in (np.ones((3, 2)), np.ones((3, 2), "i4"), np.ones((2, 2), "c8"), np.array(["a"]))
    ],
    ".npz": [
        bytes_of(np.savez, a=np.ones((3, 2))),
        bytes_of(np.savez_compressed, a=np.ones((2, 2)), b=np.ones(3)),
    ],
    ".csv": [
        b"1,2\n3,4\n",
        b"a,b\n1,2\n",
        b"\xff\xfe1,2",
        b"1,2\n3\n",
        b"",
        b"a,b\n",
        b"1,,2\n",
        b"1,2\x00\n",
    ],
}


@pytest.mark.parametrize("ending", ARRAYS)
def test_a_users_array_is_read_or_refused_whatever_is_in_the_file(tmp_path, ending):
    chance, path, read = random.Random(7), tmp_path / f"x{ending}", 0
    for _ in range(200):
        content = bytearray(chance.choice(ARRAYS[ending]))
        for _ in range(chance.choice((0, 1, 1, 3))):
            if content:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content[: chance.choice((None, None, len(content) // 2))])
        try:
            found = read_array(path, chance.choice((None, "a", "b")))
        except stk.ScoretkError:
            continue
        read += found.dtype in (torch.float32, torch.float64) and found.ndim >= 2
    assert read > 0


@pytest.mark.parametrize("fails_at", ["writing", "placing"])
def test_a_folder_that_cannot_be_replaced_stays(monkeypatch, tmp_path, fails_at):
    target = tmp_path / "d.zarr"
    target.mkdir()
    (target / "zarr.json").write_text("old")
    replace = os.replace

    def write(folder):
        folder.mkdir()
        (folder / "zarr.json").write_text("new")
        if fails_at == "writing":
            raise OSError("full")

    def placed(one, other):
        if fails_at == "placing" and one.name.endswith(".1.tmp"):
            raise OSError("taken")
        replace(one, other)

    monkeypatch.setattr(os, "replace", placed)
    with pytest.raises(OSError, match=r"full|taken"):
        files.replace_folder(target, write)
    assert (target / "zarr.json").read_text() == "old"
    monkeypatch.setattr(os, "replace", replace)
    fails_at = None
    write(tmp_path / ".d.zarr.99999999999.1.tmp")  # of a process that was killed
    files.replace_folder(target, write)
    assert (target / "zarr.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]


def test_a_seal_is_the_sum_of_the_file_with_64_zeros_in_its_place(tmp_path):
    """A second transcription: files of one release are read by the next."""
    path = tmp_path / "some.safetensors"
    sealed.write_sealed(path, "run", {"x": torch.arange(3.0)}, {"of": 1})
    with safe_open(path, "pt") as file:
        seal = json.loads(file.metadata()["scoretk"])["seal"]
    content = path.read_bytes()
    assert content.count(seal.encode()) == 1
    blank = content.replace(seal.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == seal


@pytest.mark.parametrize("check", ["file", "folder"])
def test_a_place_where_nothing_can_be_made_is_told_by_what_is_wrong_with_it(check, tmp_path):
    """No folder around it is another mistake than one that cannot be written to."""
    ask = {
        "file": lambda path: files.file_to_write("path", path),
        "folder": lambda path: files.folder_to_write("path", path, ("mark",)),
    }[check]
    assert ask(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(stk.InvalidArgument, match="in a folder that exists"):
        ask(tmp_path / "nowhere" / "new")
    (tmp_path / "closed").mkdir(mode=0o500)
    with (
        mock.patch.object(os, "access", return_value=False),
        pytest.raises(stk.InvalidArgument, match="that can be written to"),
    ):
        ask(tmp_path / "closed" / "new")


KINDS = {"a folder": os.mkdir, "a FIFO": os.mkfifo}


@pytest.mark.parametrize("links", [0, 1, 2])
@pytest.mark.parametrize("kind", [*KINDS, "a socket", "a device"])
def test_what_is_there_instead_of_a_file_is_told(tmp_path, monkeypatch, kind, links):
    """By name, at the end of links too."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("there")
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "a socket":
            bound.bind(str(path))
        elif kind == "a device":
            path = Path("/dev/zero")
        else:
            KINDS[kind](path)
        for i in range(links):
            Path(f"link {i}").symlink_to(path)
            path = Path(f"link {i}")
        for check in (files.file_to_write, files.file_to_read):
            with pytest.raises(stk.InvalidArgument, match=f"{kind} is there"):
                check("path", path)


class Buffer(bytearray):
    """One to which others can refer weakly."""


@pytest.mark.parametrize("fails_at", [None, 0, 3])
def test_parts_of_a_file_are_asked_for_one_after_the_other(tmp_path, fails_at):
    """A file is as large as it likes: no more than two of its parts are in memory at once."""
    path, alive = tmp_path / "f", []
    path.write_bytes(b"old")

    def parts():
        for i in range(5):
            assert sum(ref() is not None for ref in alive) <= 1
            if i == fails_at:
                raise Stop
            part = Buffer(bytes([i]) * 3)
            alive.append(weakref.ref(part))
            yield part
            del part

    with pytest.raises(Stop) if fails_at is not None else contextlib.nullcontext():
        files.write_atomically(path, parts())
    whole = b"".join(bytes([i]) * 3 for i in range(5))
    assert path.read_bytes() == (whole if fails_at is None else b"old")
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "folder", "kind"])
def test_what_is_wrong_with_a_file_is_told_once_whoever_reads_it(tmp_path, damage):
    path = tmp_path / "f"
    sealed.write_sealed(path, "run", {"x": torch.arange(9.0)}, {"a": 1})
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage in ("gone", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    said = []
    for read in (sealed.read_sealed, sealed.open_sealed):
        with pytest.raises(sealed.Unreadable) as error:
            read(path, "fit" if damage == "kind" else "run")
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "Unreadable" not in said[0]


@pytest.mark.parametrize("error", [OSError, PermissionError, ValueError, sealed.Unreadable])
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_older_one_stays(
    tmp_path, monkeypatch, error
):
    """Whether the disk refuses or the format cannot hold what is there."""
    path = tmp_path / "c"
    checkpoint.write(path, {"x": torch.ones(2)}, {"a": 1})
    content = path.read_bytes()
    monkeypatch.setattr(checkpoint, "write_sealed", mock.Mock(side_effect=error("said so")))
    with pytest.raises(stk.CheckpointError, match=r"said so.* An older one there is untouched"):
        checkpoint.write(path, {"x": torch.zeros(2)}, {"a": 2})
    assert path.read_bytes() == content


@pytest.mark.skipif(locks.fcntl is None, reason="there are no such locks here")
@pytest.mark.parametrize("name", sorted(errno.errorcode.values()))
def test_what_a_file_system_says_of_a_lock(monkeypatch, name):
    """Only that it has none means that there is none; all else is told, and who is in the way by a type of its own."""
    number = getattr(errno, name)
    monkeypatch.setattr(locks.fcntl, "flock", mock.Mock(side_effect=OSError(number, name)))
    if number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
        assert locks._flock(3, "LOCK_EX") is False
    else:
        with pytest.raises(OSError, match=name) as told:
            locks._flock(3, "LOCK_EX")
        busy = number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EALREADY, errno.EINPROGRESS)
        assert isinstance(told.value, BlockingIOError) is busy


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("header", [{}, {"a": [1, {"b": None}]}], ids=["empty", "of its own"])
def test_a_file_is_sealed_however_little_is_in_it(tmp_path, count, header):
    """Without a tensor, and without a header: it is read as it was written, and no byte of it can change."""
    path = tmp_path / "f"
    tensors = {f"x{i}": torch.arange(float(i)) for i in range(count)}
    sealed.write_sealed(path, "run", tensors, header)
    content = path.read_bytes()
    for read in (sealed.read_sealed, sealed.open_sealed):
        found, told = read(path, "run")
        assert found.keys() == tensors.keys()
        assert {name: told[name] for name in header} == header
    for i in range(0, len(content), 7):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        for read in (sealed.read_sealed, sealed.open_sealed):
            with pytest.raises(sealed.Unreadable):
                read(path, "run")


TEXTS = {"a mark of the byte order": b"\xef\xbb\xbf", "none": b""}


@pytest.mark.parametrize("mark", TEXTS)
@pytest.mark.parametrize("header", ["", "a,b", "a b,c", "x,1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_table_is_the_same_in_each_form_of_its_text(tmp_path, mark, header, end, last):
    """With names of columns or without, however lines end, and behind a mark of the byte order."""
    lines = [*([header] if header else []), "1,2.5", "-3,4e2", " 5 , nan"]
    path = tmp_path / "x.csv"
    path.write_bytes(TEXTS[mark] + (end.join(lines) + end * last).encode())
    wanted = torch.tensor([[1, 2.5], [-3, 400], [5, float("nan")]], dtype=torch.float64)
    assert torch.equal(read_array(path).nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("kind", ["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d", "F"])
def test_numbers_of_each_type_are_read_as_what_holds_them(tmp_path, kind):
    """Of more than four bytes in float64, whole numbers and flags in float32; others are refused."""
    values = np.array([[1, 0], [1, 1]], kind)
    paths = [tmp_path / f"x{ending}" for ending in (".npy", ".npz")]
    np.save(paths[0], values)
    np.savez(paths[1], values)
    for path in paths:
        if kind == "F":
            with pytest.raises(stk.InvalidArgument, match="complex64"):
                read_array(path)
        else:
            wanted = torch.float64 if kind == "d" else torch.float32
            assert torch.equal(read_array(path), torch.tensor(values.astype("d")).to(wanted))
            assert read_array(path).dtype == wanted
