"""
`ryorin index watch` with the embedder of the tests: the words of the command line follow the script's name.

While there is a file 'embedder-away' in the home, the embedder does not answer.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "index"))

from word_embedder import WordEmbedder, fake_embedder

import ryorin_index.watch
from ryorin.cli import main
from ryorin.errors import Unavailable
from ryorin.settings import load_settings

home = load_settings().home


class Embedder(WordEmbedder):
    def passages(self, texts):
        if (home / "embedder-away").exists():
            raise Unavailable("the embedder is away")
        return super().passages(texts)


ryorin_index.watch.open_embedder = lambda embedder: Embedder()
ryorin_index.watch.embedder_of = lambda settings, store: fake_embedder()
sys.argv = ["ryorin", "index", "watch", *sys.argv[1:]]
main()
