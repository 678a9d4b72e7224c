"""Serves a language model over HTTP, as OpenAI does, until standard input ends.

Arguments: the folder with the package xllamacpp, and the model. Prints the address.
"""

import os
import sys

packages, model = sys.argv[1:]
sys.path.insert(0, packages)

import xllamacpp  # noqa: E402  (found in the folder above)

params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = 0
# A prompt and an answer of the usual length.
params.n_ctx = 8192
params.n_parallel = 1
# On a machine that is busy with tests, a second thread makes both wait for each other.
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
# Whoever started this holds the other end, and may die without a word.
sys.stdin.buffer.read()
os._exit(0)
