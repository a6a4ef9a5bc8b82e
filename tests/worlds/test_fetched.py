"""Models and texts that are fetched into the cache: splits, words in settings, packages that are no packages."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.errors import DataError
from orthotune.files.installed_worlds import cached_model, model_folder
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.sft_data import examples_for
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.worlds import debian_texts
from orthotune.worlds.plain_text import text_of_html, text_of_roff

PAGE = """.\\" a comment
.TH LS 1 "2022" "GNU" "Commandes"
.SH NOM
ls \\- afficher le \\fIcontenu\\fP
.SH DESCRIPTION
.PP
Une ligne
.br
et \\(Fo une autre \\(Fc, voir
.BR cat (1).
.TP
\\fB\\-a\\fP
tout, {filling}
.SH TRADUCTION
La traduction.
"""


def package(path: Path, files: dict[str, bytes], ending: str = "xz") -> Path:
    """A Debian package with these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{ending}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{ending}", packed.getvalue()),
    ):
        parts += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        parts += b"\n" * (len(content) % 2)
    path.write_bytes(parts)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORTHOTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pages(count: int) -> dict[str, bytes]:
    made = {
        f"usr/share/man/fr/man1/page{n}.1.gz": gzip.compress(PAGE.replace("{filling}", f"mot {n} " * 100).encode())
        for n in range(count)
    }
    return made | {"usr/share/man/fr/man1/link.1.gz": gzip.compress(b".so man1/page1.1\n"), "usr/share/doc/x": b"x"}


def test_a_page_becomes_text() -> None:
    text = text_of_roff(PAGE)
    assert text.startswith("NOM\nls - afficher le contenu\n\nDESCRIPTION\nUne ligne\net « une autre », voir cat(1).")
    assert "-a tout" in text and "\\" not in text
    assert text_of_html("<body><script>x()</script><p>A&amp;B</p>\n<pre>two\n lines</pre></body>") == "A&B\n\ntwo lines"


@pytest.mark.parametrize("ending", ["xz", "gz"])
def test_a_set_is_read_from_its_package(cache: Path, tmp_path: Path, ending: str) -> None:
    folder = debian_texts.get("manpages-fr", package(tmp_path / "manpages-fr.deb", pages(60), ending))
    assert folder == cache / "texts" / "manpages-fr"
    rows = {split: debian_texts.load_split("manpages-fr", split) for split in debian_texts.SPLITS}
    assert sum(map(len, rows.values())) == 60 and min(map(len, rows.values())) > 0
    names = [row["source"] for own in rows.values() for row in own]
    assert len(set(names)) == 60 and all("La traduction" not in row["text"] for own in rows.values() for row in own)
    again = debian_texts.get("manpages-fr", package(tmp_path / "again.deb", pages(60)))
    assert {split: debian_texts.load_split("manpages-fr", split) for split in debian_texts.SPLITS} == rows, again


def test_words_in_settings(cache: Path, tmp_path: Path) -> None:
    debian_texts.get("manpages-fr", package(tmp_path / "manpages-fr.deb", pages(60)))
    settings = SFTSettings(
        model="text-world", data="manpages-fr/train", eval_data="manpages-fr/validation", old_data="manpages-fr/test"
    )
    examples, domains = examples_for(settings)
    assert examples.format == "text" and set(domains) == {"new", "old"}
    assert len(examples.rows) + sum(len(own.rows) for own in domains.values()) == 60


def test_a_dictionary(cache: Path, tmp_path: Path) -> None:
    lines = ["  1 a licence", "0001 03 n 01 reed 0 000 | a thin strip that vibrates; \"he played\"  ",
             "0002 03 n 01 Reed 0 000 | a name of a person, not taken", "0003 03 n 01 odd 0 000 | short"]  # fmt: skip
    content = "\n".join(lines).encode()
    debian_texts.get("dictionary", package(tmp_path / "w.deb", {"usr/share/wordnet/data.noun": content}))
    rows = [row for split in debian_texts.SPLITS for row in debian_texts.load_split("dictionary", split)]
    assert [row["completion"][0]["content"] for row in rows] == ["reed (noun): a thin strip that vibrates"]
    assert rows[0]["prompt"] == [{"role": "user", "content": 'What does the noun "reed" mean?'}]


def test_what_was_not_fetched_is_told(cache: Path) -> None:
    with pytest.raises(DataError, match="Run `orthotune worlds get manpages-fr` once; the texts are in Debian's"):
        examples_for(SFTSettings(model="text-world", data="manpages-fr/train"))
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        debian_texts.load_split("handbook", "valid")
    with pytest.raises(DataError, match="Run `orthotune worlds get smollm2` once"):
        load_model("smollm2", None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Run `orthotune worlds get smollm2` once"):
        load_tokenizer("smollm2")


def test_a_fetched_model_is_found_by_its_word(cache: Path, model_path: Path) -> None:
    folder = cached_model("smollm2")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(model_path)
    assert model_folder("smollm2") == str(folder) and len(load_tokenizer("smollm2")) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no package", "a file that is no package"),
        (b"!<arch>\n", "a package without contents"),
        (b"", "a file that is no package"),
    ],
)
def test_files_that_are_no_packages(cache: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(DataError, match=message):
        debian_texts.get("handbook", tmp_path / "x.deb")
    assert not (cache / "texts").exists()


def test_another_package_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of its texts in it.*debian-handbook"):
        debian_texts.get("handbook", package(tmp_path / "manpages-fr.deb", pages(3)))


def test_the_verb(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CliRunner().invoke
    shown = call(app, ["worlds", "list"])
    assert shown.exit_code == 0 and "smollm2" in shown.stdout and "orthotune worlds get" in shown.stdout
    wrong = call(app, ["worlds", "get", "manpage-fr"])
    assert wrong.exit_code == 2 and "Did you mean 'manpages-fr'?" in wrong.stderr
    wrong = call(app, ["worlds", "get", "text-world"])
    assert wrong.exit_code == 2 and "come with the package orthotune-worlds" in wrong.stderr
    wrong = call(app, ["worlds", "get", "handbook", "--from", str(tmp_path / "none.deb")])
    assert wrong.exit_code == 2 and "no such file or folder" in wrong.stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    wrong = call(app, ["worlds", "get", "handbook"])
    assert wrong.exit_code == 2 and "no apt-get on this machine" in wrong.stderr and "--from FILE.deb" in wrong.stderr
    file = package(tmp_path / "m.deb", pages(4))
    assert call(app, ["worlds", "get", "manpages-fr", "--from", str(file)]).exit_code == 0
    wrong = call(app, ["worlds", "get", "smollm2", "--from", str(tmp_path)])
    assert wrong.exit_code == 2 and "no .gguf file" in wrong.stderr
