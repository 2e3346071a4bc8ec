"""Debian's Prometheus, on a port and in a directory of its own."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from harness import PATIENCE, SCRATCH, until
from next_hops import reserve


class Prometheus:
    """Scrapes a gateway's metrics each second and evaluates these rules; killed at the end of its `with`."""

    def __init__(self, metrics, rules):
        self.directory = SCRATCH / "prometheus"
        self.directory.mkdir()
        self.reserved = reserve("127.0.0.1")
        self.server = f"127.0.0.1:{self.reserved.getsockname()[1]}"
        target = urllib.parse.urlsplit(metrics).netloc
        config = self.directory / "prometheus.yml"
        # JSON is YAML.
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "gatepost", "static_configs": [{"targets": [target]}]}],
        }))
        self.log = self.directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={self.directory}/data",
                 f"--web.listen-address={self.server}", "--log.level=warn"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self):
        try:
            until("Prometheus is ready", self._is_ready)
        except BaseException:
            self.__exit__(True)
            raise
        return self

    def __exit__(self, failure=None, *_):
        if failure:
            print(f"--- Prometheus, exit code {self.process.poll()}")
            print("".join(self.log.open(errors="replace").readlines()[-20:]), flush=True)
        self.process.kill()
        self.process.wait()

    def _is_ready(self):
        assert self.process.poll() is None, "it has ended"
        try:
            with urllib.request.urlopen(f"http://{self.server}/-/ready", timeout=PATIENCE) as response:
                return response.status == 200
        except OSError:
            return False

    def ask(self, path, parameters=()):
        """The data of an answer of its HTTP API."""
        url = f"http://{self.server}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode(errors='replace')}") from error
        assert answer["status"] == "success" and not answer.get("warnings"), answer
        return answer["data"]

    def query(self, expression):
        """The values that an expression has now: labels and number."""
        return [(sample["metric"], float(sample["value"][1])) for sample in self.ask("query", {"query": expression})["result"]]

    def rules(self):
        """All rules."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
