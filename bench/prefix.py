"""
Share of prompt tokens that vLLM's prefix cache gives back, passages ordered to share beginnings, against the order of
their relevance and against an oracle.

The trace: questions on the Debian Reference (those of bench/hybrid.py, which fetches it, in English), drawn by Zipf's
law with exponent 1, each in one of 64 wordings, so that the same question finds its five passages in several orders and
is rarely asked twice in the same words. Searched for real. The cache is counted as vLLM keeps it: by whole blocks of
the prompt, in chains from its beginning, the least recently used forgotten; in blocks of 128 tokens as on a CPU and of
16 as on a GPU. The oracle knows all questions to come: it takes the longest beginning that is in the cache and orders
the rest by how often they will be used. In full, real vLLM behind `ryorin serve` answers a part of the trace for a
release of each order, and its own counts and times to the first token are told.

    python bench/prefix.py [--quick] [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from hybrid import TENANT, cases, chapters, indexed
from transformers import AutoTokenizer

from ryorin.catalog import open_catalog
from ryorin.catalog.tenants import create_tenant, get_tenant
from ryorin.errors import NotFound
from ryorin.models.registry import DEFAULT_BASE, DEFAULT_EMBEDDER, get_base, pull
from ryorin.prompt import Prompt, render
from ryorin.release import Retrieval
from ryorin.settings import Settings
from ryorin_index.search import Hit, Searcher
from ryorin_serve.layout import Prefixes

TOP_K = 5
CACHE_TOKENS = 46_592  # what vLLM has room for in 2 GB with the bundled model, by its log
BLOCKS = {"cpu": 128, "gpu": 16}
SYSTEM = (
    "You answer questions about Debian. Judge only by the documents. Cite the passage. Say so if they do not answer."
)
OPENINGS = (
    "", "Hello. ", "Quick question: ", "For a server in our office: ", "I could not find it in the manual. ",
    "A colleague asks: ", "On a fresh installation: ", "We are new to this. ",
)  # fmt: skip
CLOSINGS = (
    "", " Thank you.", " Please be brief.", " An example would help.", " We use the stable release.", " It is urgent.",
    " Where is it described?", " Thanks in advance.",
)  # fmt: skip
SHARE_TARGET, ORACLE_TARGET = 3.0, 0.9
Order = Callable[[Sequence[Hit]], list[Hit]]


class BlockCache:
    """vLLM's prefix cache: whole blocks, each known by all tokens up to its end. cached, asked: tokens so far."""

    def __init__(self, block: int) -> None:
        self._block, self._most = block, CACHE_TOKENS // block
        self._known: OrderedDict[int, None] = OrderedDict()
        self.cached = self.asked = 0

    def ask(self, tokens: Sequence[int]) -> None:
        """A prompt. Its last token is always computed, so its last block may be only in part."""
        self.asked += len(tokens)
        chain, still = 0, True
        for end in range(self._block, len(tokens) + 1, self._block):
            chain = hash((chain, tuple(tokens[end - self._block : end])))
            still = still and chain in self._known and end < len(tokens)
            self.cached += self._block * still
            self._known[chain] = None
            self._known.move_to_end(chain)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    @property
    def share(self) -> float:
        """Of the tokens that were asked."""
        return self.cached / self.asked


def trace(questions: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """Questions as they come."""
    order = list(questions)
    draw.shuffle(order)
    weights = 1 / np.arange(1, len(order) + 1)
    return [
        f"{draw.choice(OPENINGS)}{draw.choices(order, list(weights))[0]}{draw.choice(CLOSINGS)}" for _ in range(count)
    ]


def shared() -> Order:
    """As a release with order='shared' does."""
    prefixes = Prefixes()

    def ordered(hits: Sequence[Hit]) -> list[Hit]:
        places = prefixes.ordered([hit.passage_id for hit in hits], [len(hit.text) for hit in hits])
        return [hits[place] for place in places]

    return ordered


def oracle(to_come: Sequence[Sequence[Hit]]) -> Order:
    """The same with the questions to come known."""
    prefixes = Prefixes(most=10**9)
    prefixes._used = Counter(hit.passage_id for hits in to_come for hit in hits)

    def ordered(hits: Sequence[Hit]) -> list[Hit]:
        ids = [hit.passage_id for hit in hits]
        weight = {hit.passage_id: len(hit.text) for hit in hits}
        known = prefixes._longest((), frozenset(ids), weight)[1]
        order = (*known, *sorted((each for each in ids if each not in known), key=lambda each: -prefixes._used[each]))
        for end in range(1, len(order) + 1):
            prefixes._beginnings[order[:end]] += 1
        return [hits[ids.index(each)] for each in order]

    return ordered


def simulated(questions: Sequence[str], found: Sequence[Sequence[Hit]], tokenizer: Any) -> dict[str, Any]:
    """The cached share by block size and order."""
    prompt, shares = Prompt(SYSTEM), {}
    for where, block in BLOCKS.items():
        orders: dict[str, Order] = {"relevance": list, "shared": shared(), "oracle": oracle(found)}
        caches = {name: BlockCache(block) for name in orders}
        for question, hits in zip(questions, found, strict=True):
            asked: Any = [{"role": "user", "content": question}]
            for name, order in orders.items():
                messages = render(prompt, asked, [hit.prompt_passage for hit in order(hits)])
                text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                caches[name].ask(tokenizer.encode(text, add_special_tokens=False))
        shares[where] = {name: round(cache.share, 4) for name, cache in caches.items()}
    return shares


async def answered(server: Any, keys: dict[str, str], questions: Sequence[str]) -> dict[str, dict[str, float]]:
    """What real vLLM counts, each question asked of both orders in turn."""
    import aiohttp
    from real import Place, streamed

    answers: dict[str, list[Any]] = {name: [] for name in keys}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        for number, question in enumerate(questions):
            for name in list(keys)[:: 1 if number % 2 else -1]:
                body = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": 2}
                answers[name].append(await streamed(http, Place(server.url, keys[name]), body))
            if number % 20 == 19:
                print(f"{number + 1}/{len(questions)} questions", file=sys.stderr)
    return {
        name: {
            "cached_share": round(sum(a.cached for a in given) / sum(a.prompt_tokens for a in given), 4),
            "first_token_s": round(statistics.median(a.first_s for a in given), 3),
        }
        for name, given in answers.items()
    }


def served(settings: Settings, questions: Sequence[str]) -> dict[str, Any]:
    """Two tenants of the same documents, whose releases differ in the order alone."""
    from real import serving, tenant_of

    os.environ["RYORIN_HOME"] = str(settings.home)
    keys = {}
    for order in ("relevance", "shared"):
        with closing(open_catalog(settings)) as catalog:
            files = chapters(settings.home.parent.parent, "en", quick=False)
            known = True
            with catalog.session() as session:
                try:
                    get_tenant(session, order)
                except NotFound:
                    create_tenant(session, order)
                    known = False
            if not known:
                indexed(catalog, "en", files, tenant=order)
        options = ("--adapter", "none", "--top-k", TOP_K, "--order", order)
        keys[order] = tenant_of(settings.home, order, SYSTEM, *options, made=True)
    with serving("--max-model-len", "4096", "--no-train") as server:
        return asyncio.run(answered(server, keys, questions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 questions on three chapters, and no real vLLM")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ryorin-bench-hybrid")
    options = parser.parse_args()
    cache = options.cache / ("quick" if options.quick else "full")
    cache.mkdir(parents=True, exist_ok=True)
    settings = Settings(home=cache / "home", database_url=f"sqlite:///{cache / 'home' / 'catalog.db'}")
    for model in (DEFAULT_EMBEDDER, DEFAULT_BASE):
        pull(settings, model, lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(get_base(settings, DEFAULT_BASE).path)
    with closing(open_catalog(settings)) as catalog:
        with catalog.session() as session:
            try:
                get_tenant(session, TENANT)
            except NotFound:
                create_tenant(session, TENANT)
        files = chapters(options.cache, "en", options.quick)
        asked = [case.question for case in cases("en", files)]
        store = indexed(catalog, "en", files)
        questions = trace(asked, 1_000 if options.quick else 5_000, random.Random(0))
        with closing(Searcher(catalog)) as searcher:
            how = Retrieval(top_k=TOP_K)
            known = {
                question: searcher.search(store.tenant_id, [store.id], question, retrieval=how)
                for question in dict.fromkeys(questions)
            }
    shares = simulated(questions, [known[question] for question in questions], tokenizer)
    more = {} if options.quick else {"vllm": served(settings, questions[:200])}
    cpu = shares["cpu"]
    report(
        "share of prompt tokens that the prefix cache gives back, passages ordered to share beginnings",
        cpu["shared"] / cpu["relevance"],
        "times that of the order of relevance",
        f">= {SHARE_TARGET}, and >= {ORACLE_TARGET} of the oracle's",
        "the order of relevance, and an oracle that knows the questions to come",
        len(questions),
        of_the_oracle={where: round(each["shared"] / each["oracle"], 4) for where, each in shares.items()},
        over_relevance={where: round(each["shared"] / each["relevance"], 4) for where, each in shares.items()},
        cached_share=shares,
        **more,
    )


if __name__ == "__main__":
    main()
