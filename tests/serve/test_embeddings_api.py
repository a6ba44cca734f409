"""/v1/embeddings as the unmodified openai client, and others, see it."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import pytest
from gated_embedder import GatedEmbedder
from lazily import Lazily
from scripted_house import NO_CERTIFICATES, House
from test_files_api import error_of, send
from word_embedder import WordEmbedder, fake_embedder

from ryorin_index.counting import EstimatedTokens
from ryorin_serve import routes_embeddings

openai = Lazily("openai")
TEXTS = ["Unopened goods go back.", "お米は毎月届きます。"]


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedder of words stands for the server's, which is called multilingual-e5-small."""
    monkeypatch.setattr(routes_embeddings, "get_embedder", lambda *_: fake_embedder())
    monkeypatch.setattr(routes_embeddings, "open_counter", lambda _: EstimatedTokens(60))


@pytest.fixture
def client(library: House) -> Iterator[openai.OpenAI]:
    """The package's own, but for its strict validation, which takes no base64 though the package asks for it."""
    http = openai.DefaultHttpxClient(verify=NO_CERTIFICATES)
    with openai.OpenAI(base_url=f"{library.url}/v1", api_key=library.keys["support"], http_client=http) as made:
        yield made


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_vectors_are_those_of_the_stores(client: openai.OpenAI, form: str | None) -> None:
    asked = {} if form is None else {"encoding_format": form}
    made = client.embeddings.create(model="multilingual-e5-small", input=TEXTS, **asked)
    assert [row.index for row in made.data] == [0, 1] and made.model == "multilingual-e5-small"
    rows = [row.embedding for row in made.data]
    if form == "base64":  # then the package leaves it as it came
        rows = [np.frombuffer(base64.b64decode(str(row)), "<f4") for row in rows]
    assert np.allclose(rows, WordEmbedder().passages(TEXTS), atol=1e-6)
    assert made.usage.prompt_tokens == made.usage.total_tokens > 0
    one = client.embeddings.create(model="multilingual-e5-small", input=TEXTS[0], dimensions=64)
    assert np.allclose(one.data[0].embedding, WordEmbedder().passages(TEXTS[:1])[0], atol=1e-6)


def test_questions_are_embedded_as_questions(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    queries = GatedEmbedder.queries

    def seen(self: GatedEmbedder, texts: list[str]) -> object:
        asked.append(list(texts))
        return queries(self, texts)

    monkeypatch.setattr(GatedEmbedder, "queries", seen)
    more = {"input_type": "query"}
    client.embeddings.create(model="multilingual-e5-small", input=TEXTS, extra_body=more)
    assert asked == [TEXTS]


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"input": [1, 2, 3]}, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
        ({"input": []}, "input", "a text"),
        ({"input": ["a", " "]}, "input[1]", "not empty"),
        ({"input": ["a", 3]}, "input[1]", "must be a text"),
        ({"input": ["a"] * 2049}, "input", "the limit is 2048"),
        ({"input": "word " * 70, "input_type": "query"}, "input", "reads 60"),
        ({"dimensions": 8}, "dimensions", "gives 64"),
        ({"encoding_format": "int8"}, "encoding_format", "float, base64"),
        ({"input_type": "code"}, "input_type", "passage, query"),
        ({"truncate": True}, "truncate", "Unknown parameter"),
    ],
)
def test_what_cannot_be_embedded(library: House, change: dict[str, object], param: str, said: str) -> None:
    body = {"model": "multilingual-e5-small", "input": "a"} | change
    error = error_of(send(library, "POST", "/v1/embeddings", json=body), 400)
    assert error["param"] == param and said in error["message"]


def test_a_model_that_does_not_embed(library: House) -> None:
    with pytest.raises(openai.NotFoundError, match="does not embed here; use e5, multilingual-e5-small") as refused:
        library.client().embeddings.create(model="support", input="a")
    assert refused.value.code == "model_not_found"


def test_long_passages_are_embedded_whole(client: openai.OpenAI) -> None:
    long = " ".join(f"w{n}" for n in range(200))
    assert len(client.embeddings.create(model="multilingual-e5-small", input=long).data[0].embedding) == 64
