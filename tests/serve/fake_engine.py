"""
A small program in vLLM's place, for the supervisor's tests: `fake_engine.py PORT FOLDER`.

What it does stands in FOLDER/plan.json: `delay_s` before it answers /health; `exit` code to end with at once; `deaf` to
SIGTERM; `sick` to answer /health with 503 after the first time. It starts a worker process, as vLLM does, and writes
both process ids to FOLDER/pids, one line a start.
"""

import json
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

port, folder = int(sys.argv[1]), Path(sys.argv[2])
plan = json.loads((folder / "plan.json").read_text())
if plan.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen(["sleep", "600"])
with (folder / "pids").open("a") as pids:
    pids.write(f"{__import__('os').getpid()} {worker.pid}\n")
print("the engine has something to say", flush=True)
if "exit" in plan:
    print("ValueError: the flags are wrong", flush=True)
    sys.exit(plan["exit"])
time.sleep(plan.get("delay_s", 0))


class Health(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Health.asked += 1
        self.send_response(503 if plan.get("sick") and Health.asked > 1 else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", port), Health).serve_forever()
