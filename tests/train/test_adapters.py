"""`ryorin adapter` on real adapters of a tiny model: what it shows, compares, merges, writes and deletes."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora import logits, save_lora
from tiny import PROMPT

from ryorin.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from ryorin.catalog.tables import Adapter, Job
from ryorin.catalog.tenants import create_tenant, get_tenant, set_prompt
from ryorin.errors import Conflict
from ryorin.release import create_release, promote
from ryorin_train.import_adapter import import_adapter

KINDS: dict[str, dict[str, Any]] = {
    "a": {"seed": 1},
    "b": {"seed": 2, "rank": 16, "alpha": 8, "use_rslora": True, "targets": ("v_proj", "up_proj")},
    "wide": {"seed": 3, "rank": 64},
    "upper": {"seed": 4, "targets": ("o_proj",), "layers_to_transform": [2]},
}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """Four adapters as PEFT saves them: of rank 8, of rank 16 with rsLoRA, of rank 64, of one layer."""
    place = tmp_path_factory.mktemp("loras")
    return {name: save_lora(place / name, tiny_base, **options) for name, options in KINDS.items()}


@pytest.fixture
def desk(catalog: Any, tiny_base: Path) -> Any:
    """A catalog, on SQLite and on PostgreSQL, with the tiny base model and two departments."""
    from ryorin.models.install import add_folder

    add_folder(catalog.settings, "tiny", tiny_base, "base", lambda _: None)
    with catalog.session() as session:
        for name in ("support", "people"):
            set_prompt(session, create_tenant(session, name), PROMPT)
    return catalog


@pytest.fixture
def bring(desk: Any, loras: dict[str, Path]) -> Callable[..., str]:
    """`bring("a")`: import it; its name."""

    def run(kind: str, tenant: str = "support", *, bound: bool = True) -> str:
        return import_adapter(desk, tenant, loras[kind], base_name="tiny", for_current_prompt=bound).adapter

    return run


@pytest.fixture
def release(desk: Any) -> Callable[..., int]:
    """`release(adapter, live=True)`: a release of the support desk with it; its version."""

    def run(name: str | None, *, live: bool = False, evidence: dict[str, Any] | None = None) -> int:
        with desk.session() as session:
            tenant = get_tenant(session, "support")
            adapter = session.query(Adapter).filter_by(name=name).one() if name else None
            base = session.query(Adapter).first().base_digest
            prompt = set_prompt(session, tenant, PROMPT)
            made = create_release(session, tenant, base_digest=base, prompt=prompt, adapter=adapter, evidence=evidence)
            if live:
                promote(session, tenant, made)
            return made.version

    return run


@pytest.fixture
def told(cli: Any) -> Callable[..., Any]:
    """`told("list")`: the command's JSON."""

    def run(*words: object) -> Any:
        ran = cli("adapter", *words, "--json")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    return run


@pytest.fixture
def refused(cli: Any) -> Callable[..., str]:
    """`refused("delete", name)`: the words of the refusal."""

    def run(*words: object) -> str:
        ran = cli("adapter", *words)
        assert ran.code == 2 and ran.err.startswith("error: "), ran
        return str(ran.err)

    return run


def dense(folder: Path) -> dict[str, Any]:
    """What an adapter adds to each weight, as a full matrix, from the definition."""
    from safetensors.torch import load_file

    config, tensors = json.loads((folder / CONFIG_FILE).read_text()), load_file(folder / WEIGHTS_FILE)
    factor = config["lora_alpha"] / (config["r"] ** (0.5 if config["use_rslora"] else 1))
    return {
        name.removesuffix(".lora_A.weight"): factor
        * tensors[name.replace("lora_A", "lora_B")].double()
        @ tensors[name].double()
        for name in tensors
        if "lora_A" in name
    }


def test_list_and_show_say_what_is_there(
    bring: Callable[..., str], told: Callable[..., Any], release: Callable[..., int], desk: Any, cli: Any
) -> None:
    first, other = bring("a"), bring("upper", "people")
    release(first, evidence={"format": 0.99})
    release(first, live=True)
    rows = told("list")
    assert [(row["name"], row["tenant"], row["kind"], row["rank"], row["files"]) for row in rows] == [
        (other, "people", "import", 8, "whole"),
        (first, "support", "import", 8, "whole"),
    ]
    folder = desk.settings.adapters_dir / first
    assert rows[1]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    shown = told("show", first)
    assert shown["releases"] == [
        {"version": 1, "live": False, "evidence": {"format": 0.99}},
        {"version": 2, "live": True, "evidence": None},
    ]
    assert shown["files"] == "whole" and shown["imported"]["source"] == "a"
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert [row["files"] for row in told("list", "--tenant", "support")] == ["damaged"]
    assert "files           damaged" in cli("adapter", "show", first).out
    assert first in cli("adapter", "list").out


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # the database has no part in it
def test_diff_measures_what_full_matrices_would(
    bring: Callable[..., str], told: Callable[..., Any], loras: dict[str, Path], desk: Any, cli: Any
) -> None:
    import torch

    one, other = bring("a"), bring("b", bound=False)
    compared = told("diff", one, other)
    full_a, full_b = dense(loras["a"]), dense(loras["b"])
    flat = [
        torch.cat([side[name].flatten() if name in side else torch.zeros_like(shape).flatten() for name, shape in both])
        for both in [[(name, full_b.get(name, full_a.get(name))) for name in sorted({*full_a, *full_b})]]
        for side in (full_a, full_b)
    ]
    weights = compared["weights"]
    assert weights["all"]["norm_a"] == pytest.approx(flat[0].norm().item(), rel=1e-5)
    assert weights["all"]["distance"] == pytest.approx(((flat[0] - flat[1]).norm() / flat[0].norm()).item(), rel=1e-5)
    cosine = torch.dot(flat[0], flat[1]) / (flat[0].norm() * flat[1].norm())
    assert weights["all"]["cosine"] == pytest.approx(cosine.item(), abs=1e-5)
    name = "model.layers.1.self_attn.v_proj"
    module = f"base_model.model.{name}"
    apart = (full_a[module] - full_b[module]).norm() / full_a[module].norm()
    assert weights["modules"][name]["distance"] == pytest.approx(apart.item(), rel=1e-5)
    assert weights["modules"]["model.layers.0.mlp.up_proj"]["distance"] is None  # A changes nothing there
    assert list(weights["layers"]) == ["0", "1", "2"] and set(weights["kinds"]) == {"q_proj", "v_proj", "up_proj"}
    assert compared["fields"]["rank"] == [8, 16] and compared["fields"]["prompt_digest"] == [PROMPT.digest, None]
    assert "base.digest" not in compared["fields"] and compared["same"] is False

    itself = told("diff", one, bring("a", "people"))
    assert itself["same"] is True and itself["fields"] == {"tenant": ["support", "people"]}
    assert (itself["weights"]["all"]["distance"], itself["weights"]["all"]["cosine"]) == (0.0, 1.0)
    assert "the furthest" in cli("adapter", "diff", one, other).out
    with desk.session() as session:
        session.query(Adapter).filter_by(name=other).update({"base_digest": "e" * 64})
    assert told("diff", one, other)["weights"] is None


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # the database has no part in it
def test_a_merge_is_the_weighted_sum(
    bring: Callable[..., str], told: Callable[..., Any], loras: dict[str, Path], desk: Any, tiny_base: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    parents = [bring("a"), bring("b"), bring("upper", "people")]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32), str(loras["a"]), adapter_name="a"
    )
    model.load_adapter(str(loras["b"]), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, -1.5], "sum", combination_type="cat")
    model.set_adapter("sum")
    with torch.no_grad():
        of_peft = model.eval()(input_ids=torch.arange(3, 40)[None]).logits[0]
    of_two = told("merge", *parents[:2], "--weights", "0.5,-1.5")
    assert torch.allclose(logits(tiny_base, desk.settings.adapters_dir / of_two["adapter"]), of_peft, atol=1e-5)

    merged = told("merge", *parents, "--weights", "0.5,-1.5,2", "--tenant", "people")  # of three, PEFT cannot
    assert (merged["rank"], merged["lost"], merged["prompt_digest"]) == (32, 0.0, PROMPT.digest)
    assert merged["adapter"].startswith("people-")
    summed = dense(desk.settings.adapters_dir / merged["adapter"])
    sides = [dense(loras[kind]) for kind in ("a", "b", "upper")]
    assert {name for side in sides for name in side} <= summed.keys()
    for name, update in summed.items():
        parts = [weight * side[name] for weight, side in zip((0.5, -1.5, 2.0), sides, strict=True) if name in side]
        assert torch.allclose(update, sum(parts, torch.zeros_like(update)), atol=1e-6)
    manifest = told("show", merged["adapter"])
    assert [(one["name"], one["weight"]) for one in manifest["parents"]] == list(
        zip(parents, [0.5, -1.5, 2.0], strict=True)
    )
    assert told("merge", *parents, "--weights", "0.5,-1.5,2", "--tenant", "people")["present"] is True
    with desk.session() as session:
        assert {job.status for job in session.query(Job).filter_by(kind="merge")} == {"succeeded"}


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # the database has no part in it
def test_a_merge_that_does_not_fit_is_the_nearest_of_its_rank(
    bring: Callable[..., str], told: Callable[..., Any], loras: dict[str, Path], desk: Any
) -> None:
    import torch

    names = [bring("a"), bring("wide")]
    full = {name: update + 0.5 * dense(loras["wide"])[name] for name, update in dense(loras["a"]).items()}
    merged = told("merge", *names, "--weights", "1,0.5", "--rank", "8")
    kept = dense(desk.settings.adapters_dir / merged["adapter"])
    lost, whole = 0.0, 0.0
    for name, update in full.items():
        values = torch.linalg.svdvals(update)
        assert (update - kept[name]).norm().item() == pytest.approx(values[8:].norm().item(), rel=1e-4)  # Eckart-Young
        lost, whole = lost + values[8:].square().sum().item(), whole + values.square().sum().item()
    assert merged["lost"] == pytest.approx((lost / whole) ** 0.5, abs=1e-5)
    assert 0.1 < merged["lost"] < 1
    # The tiny model's matrices have at most rank 32, so 64 holds the sum of ranks 8 and 64.
    assert told("merge", *names, "--weights", "1,0.5") | {"adapter": "", "digest": ""} == {
        "adapter": "", "digest": "", "rank": 64, "lost": 0.0, "prompt_digest": PROMPT.digest, "present": False
    }  # fmt: skip


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # the database has no part in it
def test_what_cannot_be_merged_is_refused(
    bring: Callable[..., str], refused: Callable[..., str], told: Callable[..., Any], desk: Any
) -> None:
    one, other = bring("a"), bring("upper", bound=False)
    assert "needs two or more" in refused("merge", one, "--weights", "1")
    assert "2 adapters and 1 weights" in refused("merge", one, other, "--weights", "1")
    assert "named twice" in refused("merge", one, one, "--weights", "1,1")
    assert "a weight is nan" in refused("merge", one, other, "--weights", "nan,1")
    assert "a weight is 0" in refused("merge", one, other, "--weights", "0,1")
    assert "write numbers" in refused("merge", one, other, "--weights", "half,1")
    assert "rank is 12" in refused("merge", one, other, "--weights", "1,1", "--rank", "12")
    assert "no adapter 'nobody-1'" in refused("merge", one, "nobody-1", "--weights", "1,1")
    assert told("merge", one, other, "--weights", "1,1")["prompt_digest"] is None  # their prompts differ
    with desk.session() as session:
        session.query(Adapter).filter_by(name=other).update({"base_digest": "e" * 64})
    assert "only adapters of one base model" in refused("merge", one, other, "--weights", "1,1")


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # the database has no part in it
def test_what_is_exported_peft_loads_and_import_takes_back(
    bring: Callable[..., str],
    told: Callable[..., Any],
    refused: Callable[..., str],
    tmp_path: Path,
    tiny_base: Path,
    loras: dict[str, Path],
    desk: Any,
) -> None:
    import torch
    import yaml

    name = bring("b")
    folder = tmp_path / "out" / "書き出し"
    exported = told("export", name, folder, "--base-id", "maker/tiny")
    assert exported["files"] == ["README.md", CONFIG_FILE, WEIGHTS_FILE, "manifest.json"]
    assert json.loads((folder / CONFIG_FILE).read_text())["base_model_name_or_path"] == "maker/tiny"
    assert torch.equal(logits(tiny_base, folder), logits(tiny_base, loras["b"]))
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["base_model"], head["library_name"]) == ("maker/tiny", "peft")
    assert f"# {name}" in card and "| rank, alpha | 16, 8 |" in card
    assert json.loads((folder / "manifest.json").read_text())["digest"] == told("show", name)["digest"]
    assert (
        str(desk.settings.home)
        not in card + (folder / CONFIG_FILE).read_text() + (folder / "manifest.json").read_text()
    )

    archive = tmp_path / "b.zip"
    told("export", name, archive)
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None and opened.namelist() == exported["files"]
    back = told("import", archive, "--tenant", "support")  # its configuration names the base model by its name here
    assert (back["adapter"], back["present"], back["ignored"]) == (name, True, ["README.md", "manifest.json"])

    assert "is there already" in refused("export", name, folder)
    assert "is there already" in refused("export", name, archive)
    (tmp_path / "empty").mkdir()
    told("export", name, tmp_path / "empty")
    (desk.settings.adapters_dir / name / WEIGHTS_FILE).write_bytes(b"")
    assert "damaged or gone" in refused("export", name, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_export_answers_as_base_and_adapter_do(
    tmp_path: Path, tiny_base: Path, loras: dict[str, Path], dtype: str
) -> None:
    """Written in several small shards, loaded by transformers alone; the types of the weights are the base model's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ryorin_train.export_adapter import write_merged

    base = shutil.copytree(tiny_base, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=getattr(torch, dtype)).save_pretrained(base)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(base, loras["b"], merged, shard_bytes=34_000)
    sizes = [path.stat().st_size for path in merged.glob("*.safetensors")]
    assert len(sizes) > 2 and max(sizes) < 36_000
    model = AutoModelForCausalLM.from_pretrained(str(merged), dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    expected = logits(base, loras["b"])
    tolerance = 1e-5 if dtype == "float32" else 0.02 * expected.abs().max().item()  # weights rounded to 8 bits
    assert torch.allclose(logits(merged), expected, atol=tolerance)
    assert not torch.allclose(logits(base), expected, atol=10 * tolerance)
    assert AutoTokenizer.from_pretrained(str(merged)).chat_template


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # the database has no part in it
def test_a_merged_export_by_command(
    bring: Callable[..., str], told: Callable[..., Any], tmp_path: Path, tiny_base: Path, loras: dict[str, Path]
) -> None:
    import torch

    exported = told("export", bring("a"), tmp_path / "model", "--merged")
    assert exported["merged"] is True and {"config.json", "tokenizer.json", "README.md"} < set(exported["files"])
    assert torch.allclose(logits(tmp_path / "model"), logits(tiny_base, loras["a"]), atol=1e-5)


def test_delete_spares_what_a_release_uses(
    bring: Callable[..., str],
    told: Callable[..., Any],
    refused: Callable[..., str],
    release: Callable[..., int],
    desk: Any,
    cli: Any,
) -> None:
    used, free = bring("a"), bring("upper")
    folder = desk.settings.adapters_dir / used
    assert told("delete", free)["deleted"] is True
    assert not (desk.settings.adapters_dir / free).exists()
    assert told("delete", free) == {"name": free, "deleted": False, "bytes": 0, "kept_for_releases": False}

    first, second = release(used), release(used, live=True)
    for options in ((), ("--force",)):
        assert f"release {second} of tenant support is live" in refused("delete", used, *options)
    plain = release(None, live=True)
    assert f"named by releases {first}, {second} of tenant support, not live; --force" in refused("delete", used)
    assert folder.is_dir() and [row["name"] for row in told("list")] == [used]
    assert told("delete", used, "--force")["kept_for_releases"] is True
    assert told("delete", used)["deleted"] is False
    assert not folder.exists() and told("list") == []
    assert "was deleted" in refused("show", used)
    for verb in (("promote", str(second)), ("rollback",)):
        ran = cli("release", *verb, "--tenant", "support")
        assert ran.code == 2 and f"needs adapter {used}, which was deleted" in ran.err
    assert cli("release", "create", "--tenant", "support", "--adapter", used, "--base", "tiny").code == 2
    shown = json.loads(cli("release", "show", str(second), "--tenant", "support", "--json").out)
    assert shown["adapter"] == used  # what it was is still told

    assert bring("a") == used  # the same content brings it, and its releases, back
    assert cli("release", "promote", str(second), "--tenant", "support").code == 0
    assert cli("release", "promote", str(plain), "--tenant", "support").code == 0


def test_a_deletion_that_was_broken_off_is_finished_by_the_next(
    bring: Callable[..., str], told: Callable[..., Any], desk: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ryorin_train import adapters

    name = bring("a")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapters.shutil, "rmtree", killed)
        assert cli("adapter", "delete", name).code == 130
    assert told("list") == [] and (desk.settings.adapters_dir / name).is_dir()
    assert told("delete", name)["deleted"] is True
    assert not (desk.settings.adapters_dir / name).exists()
    for hostile in ("../people", "..", "", "a/b", "x"):
        assert cli("adapter", "delete", "--", hostile).code == 2


def test_a_release_is_not_made_of_an_adapter_that_was_deleted_meanwhile(
    bring: Callable[..., str], told: Callable[..., Any], desk: Any
) -> None:
    name = bring("a")
    with desk.session() as session:
        adapter = session.query(Adapter).filter_by(name=name).one()
    told("delete", name)
    with desk.session() as session:
        tenant = get_tenant(session, "support")
        prompt = set_prompt(session, tenant, PROMPT)
        with pytest.raises(Conflict, match="was deleted"):
            create_release(session, tenant, base_digest=adapter.base_digest, prompt=prompt, adapter=adapter)


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # the database has no part in it
def test_a_name_of_twelve_digits_is_not_taken_by_another_digest(
    bring: Callable[..., str], desk: Any, loras: dict[str, Path]
) -> None:
    """Whoever can choose the weights can make two adapters with the same twelve digits: the first one stays."""
    name = bring("a")
    with desk.session() as session:
        session.query(Adapter).filter_by(name=name).update({"digest": "f" * 64})
    before = (desk.settings.adapters_dir / name / WEIGHTS_FILE).stat().st_ino
    with pytest.raises(Conflict, match=f"another adapter has the name {name}"):
        bring("a")
    assert (desk.settings.adapters_dir / name / WEIGHTS_FILE).stat().st_ino == before
