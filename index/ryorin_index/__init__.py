"""Documents → passages → vectors → FAISS. SQL is the truth; what FAISS holds is made from it."""
