"""The disk store under damage: everything that is not exactly what was put in is a miss, said once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings

import pytest

from flashlight import config
from flashlight.cache import CacheWarning, Store, default, key

TEXT = "kernel é\n\0 text"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def entry(store):
    (path,) = store.folder.glob("*.entry")
    return path


def test_what_is_put_comes_back(store):
    assert store.get("a") is None
    assert store.put("a", TEXT)
    assert store.put("b", "")
    assert (store.get("a"), store.get("b"), store.get("c")) == (TEXT, "", None)
    assert store.put("a", "again")
    assert store.get("a") == "again"
    assert Store(store.folder).get("a") == "again"


def test_nobody_else_can_read_it(store):
    store.put("a", TEXT)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert entry(store).stat().st_mode & 0o777 == 0o600
    assert [p.name for p in store.folder.iterdir()] == [entry(store).name]


def test_every_flipped_bit_is_noticed(store):
    store.put("a", TEXT)
    path = entry(store)
    whole = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        for position in range(len(whole) * 8):
            damaged = bytearray(whole)
            damaged[position // 8] ^= 1 << position % 8
            path.write_bytes(damaged)
            assert store.get("a") is None, position
            assert not path.exists(), position
    assert store.put("a", TEXT)
    assert store.get("a") == TEXT


def test_every_truncation_and_an_addition_are_noticed(store):
    store.put("a", TEXT)
    path = entry(store)
    whole = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        for part in (*(whole[:n] for n in range(len(whole))), whole + b"\0", whole * 2):
            path.write_bytes(part)
            assert store.get("a") is None, len(part)
    path.write_bytes(whole)
    assert store.get("a") == TEXT


def test_damage_is_said_once_and_set_aside(store):
    store.put("a", TEXT)
    path = entry(store)
    path.write_bytes(b"nonsense")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert store.get("a") is None
        path.write_bytes(b"more nonsense")
        assert store.get("a") is None
    assert len(heard) == 1
    assert "is damaged" in str(heard[0].message)
    assert (store.folder / "damaged" / path.name).read_bytes() == b"more nonsense"


def test_an_entry_moved_to_another_key_is_a_miss(store):
    store.put("a", TEXT)
    first = entry(store)
    store.put("b", "b")
    (second,) = set(store.folder.glob("*.entry")) - {first}
    second.write_bytes(first.read_bytes())
    with pytest.warns(CacheWarning):
        assert store.get("b") is None
    assert store.get("a") == TEXT


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_what_others_may_write_is_refused(store):
    store.put("a", TEXT)
    store.folder.chmod(0o777)
    with pytest.warns(CacheWarning, match="0700"):
        assert store.get("a") is None
    with pytest.warns(CacheWarning, match="0700"):
        assert not Store(store.folder).put("b", "b")
    store.folder.chmod(0o700)
    entry(store).chmod(0o666)
    with pytest.warns(CacheWarning):
        assert Store(store.folder).get("a") is None


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="links")
def test_a_link_is_not_followed(store, tmp_path):
    store.put("a", TEXT)
    path = entry(store)
    other = tmp_path / "other"
    path.rename(other)
    path.symlink_to(other)
    with pytest.warns(CacheWarning):
        assert store.get("a") is None
    assert other.exists()


def test_another_users_folder_is_refused(store, monkeypatch):
    store.put("a", TEXT)
    monkeypatch.setattr(os, "getuid", lambda: store.folder.stat().st_uid + 1)
    with pytest.warns(CacheWarning, match="another user"):
        assert store.get("a") is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO, errno.EBUSY, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "replace", "fsync"])
def test_a_disk_that_fails_costs_the_entry_only(store, monkeypatch, number, call):
    store.put("a", TEXT)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            assert not store.put("b", "b")
            assert store.get("a") == (None if call == "open" else TEXT)
        assert [w.category for w in heard] == [CacheWarning]
    assert store.get("a") == TEXT
    assert [p.suffix for p in store.folder.iterdir()] == [".entry"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        broken = Store(folder)
        with pytest.warns(CacheWarning):
            assert not broken.put("a", TEXT)
        assert broken.get("a") is None


WRITER = """
import sys, warnings
warnings.simplefilter("error")
from flashlight.cache import Store
store, me = Store(sys.argv[1]), sys.argv[2]
for n in range(150):
    assert store.put("same", me * 5000)
    text = store.get("same")
    assert text is not None and len(set(text)) == 1 and len(text) == 5000, text
"""


def test_writers_at_once_leave_whole_entries(store):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(store.folder), me], cwd=root, stderr=subprocess.PIPE)
        for me in "abcd"
    ]
    for w in writers:
        _, said = w.communicate(timeout=60)
        assert w.returncode == 0, said.decode()
    assert [p.suffix for p in store.folder.iterdir()] == [".entry"]


def test_keys_hold_texts_and_versions():
    assert key("a", "b") != key("ab") != key("a", "b", "")
    assert "torch" in key("a")


def test_the_default_follows_the_knob(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHLIGHT_CACHE", str(tmp_path / "here"))
    assert default().folder == tmp_path / "here"
    monkeypatch.setenv("FLASHLIGHT_CACHE", "off")
    assert default() is None
    with config.CACHE.set(tmp_path):
        assert default().folder == tmp_path
    assert default() is None


def test_a_knob_that_cannot_be_read_is_named(monkeypatch):
    monkeypatch.setenv("FLASHLIGHT_DEBUG", "loud")
    with pytest.raises(ValueError, match=r"FLASHLIGHT_DEBUG='loud'.*0 to 5"):
        config.DEBUG.get()
    monkeypatch.setenv("FLASHLIGHT_DEBUG", "3")
    assert config.DEBUG.get() == 3
    monkeypatch.delenv("FLASHLIGHT_DEBUG")
    assert config.DEBUG.get() == 0
