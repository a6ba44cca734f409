"""A store under LlamaIndex's own index, retrievers and query engine; the language model says back what it is given."""

from __future__ import annotations

import pytest
from lazily import Lazily
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import VectorStore
from ryorin.errors import InvalidInput
from ryorin.release import Retrieval
from ryorin_index.search import Searcher

core = Lazily("llama_index.core")
schema = Lazily("llama_index.core.schema")
vector_stores = Lazily("llama_index.core.vector_stores")
llama = Lazily("ryorin_index.llama")

TEXTS = {
    "kettle": "An opened kettle is returned within 9 days.",
    "lamp": "The lamps of oak are repaired for free.",
    "rice": "お米の定期便は毎月届きます。",
}


@pytest.fixture
def vector_store(sqlite_store: tuple[Catalog, VectorStore]) -> llama.RyorinVectorStore:
    catalog, store = sqlite_store
    made = llama.RyorinVectorStore(catalog, store, Searcher(catalog, lambda _: WordEmbedder()))
    nodes = [
        schema.TextNode(
            id_=name,
            text=text,
            metadata={"team": "shop" if name == "kettle" else "house", "number": at},
            relationships={schema.NodeRelationship.SOURCE: schema.RelatedNodeInfo(node_id=f"ref-{name}")},
        )
        for at, (name, text) in enumerate(TEXTS.items())
    ]
    assert made.add(nodes) == list(TEXTS)
    return made


def index_over(vector_store: llama.RyorinVectorStore) -> core.VectorStoreIndex:
    return core.VectorStoreIndex.from_vector_store(vector_store, embed_model=core.MockEmbedding(embed_dim=1))


@pytest.mark.parametrize("mode", ["default", "hybrid", "text_search", "mmr"])
def test_the_query_engine_answers_from_the_store(vector_store: llama.RyorinVectorStore, mode: str) -> None:
    engine = index_over(vector_store).as_query_engine(
        llm=core.llms.MockLLM(),
        similarity_top_k=1,
        vector_store_query_mode=vector_stores.types.VectorStoreQueryMode(mode),
    )
    answer = engine.query("opened kettle returned")
    assert TEXTS["kettle"] in str(answer)
    assert [source.node.text for source in answer.source_nodes] == [TEXTS["kettle"]]
    assert answer.source_nodes[0].node.ref_doc_id == "ref-kettle"


def test_filters_choose_before_the_search(vector_store: llama.RyorinVectorStore) -> None:
    def found(*filters: dict[str, object], condition: str = "and") -> set[str]:
        chosen = vector_stores.MetadataFilters.from_dicts(list(filters), condition=condition)  # type: ignore[arg-type]
        retriever = index_over(vector_store).as_retriever(similarity_top_k=3, filters=chosen)
        return {str(found.node.metadata["node_id"]) for found in retriever.retrieve("opened kettle")}

    house = {"key": "team", "value": "house"}
    assert found(house) == {"lamp", "rice"}
    assert found(house, {"key": "number", "value": 2, "operator": ">="}) == {"rice"}
    assert found(house, {"key": "number", "value": 0}, condition="or") == set(TEXTS)
    assert found({"key": "number", "value": [0, 1], "operator": "in"}) == {"kettle", "lamp"}
    with pytest.raises(InvalidInput, match="text_match"):
        found({"key": "team", "value": "ho", "operator": "text_match"})
    with pytest.raises(InvalidInput, match="not"):
        found(house, condition="not")


def test_inserting_replacing_and_deleting_through_the_index(vector_store: llama.RyorinVectorStore) -> None:
    index = index_over(vector_store)
    retriever = index.as_retriever(similarity_top_k=9, vector_store_query_mode="text_search")
    index.insert(schema.Document(text="Porcelain teapots are wrapped twice.", id_="tea"))
    assert [found.node.ref_doc_id for found in retriever.retrieve("porcelain")] == ["tea"]
    vector_store.add([schema.TextNode(id_="lamp", text="Lamps of porcelain.", metadata={})])
    assert len(retriever.retrieve("porcelain")) == 2
    index.delete_ref_doc("tea")
    assert [found.node.metadata["node_id"] for found in retriever.retrieve("porcelain")] == ["lamp"]


def test_the_retriever_searches_as_a_release_does(vector_store: llama.RyorinVectorStore) -> None:
    store = vector_store._store
    retriever = llama.RyorinRetriever(
        vector_store.client, store.tenant_id, [store.id], Retrieval(top_k=1, mode="lexical", filters=None)
    )
    answer = core.query_engine.RetrieverQueryEngine.from_args(retriever, llm=core.llms.MockLLM()).query("定期便のお米")
    assert TEXTS["rice"] in str(answer)


def test_what_it_cannot_do_is_refused(vector_store: llama.RyorinVectorStore) -> None:
    with pytest.raises(InvalidInput, match="has none"):
        vector_store.query(vector_stores.types.VectorStoreQuery(query_embedding=[0.0], similarity_top_k=1))
    with pytest.raises(InvalidInput, match="svm"):
        vector_store.query(
            vector_stores.types.VectorStoreQuery(query_str="a", mode=vector_stores.types.VectorStoreQueryMode.SVM)
        )
    with pytest.raises(InvalidInput, match="top_k"):
        vector_store.query(vector_stores.types.VectorStoreQuery(query_str="a", similarity_top_k=51))
