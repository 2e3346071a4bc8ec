#!/usr/bin/env python3
"""Dashboards and rules, held against what a release binary tells of a life with a bit of everything.

usage: observe.py GATEPOST DIRECTORY [CASE...]

Needs Debian's prometheus (with promtool) and the openssl command. A Prometheus of its own scrapes the gateway while
clients of every kind are at work (life.py). Then every query of every panel, every variable of a dashboard and every rule
is evaluated by it. Works in DIRECTORY alone, on 127.0.0.0/8. Every wait is bounded: what has no data yet is asked
again, while the clients go on. Ends with one line, `N passed, N failed`, and exits 1 when something failed.
"""

import json
import math
import re
import shutil
import sys
from pathlib import Path

from harness import SCRATCH, Gateway, case, main, run, until
from life import Life
from prometheus import Prometheus

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "grafana").glob("*.json"))
RULES = ROOT / "deploy" / "prometheus"
# Alerts that this life must set off, at least begin to; and such as it must not.
WANTED = {"GatepostNextHopDown", "GatepostMailExpired", "GatepostConnectionLimitHit", "GatepostReloadFailed"}
UNWANTED = {"GatepostDown", "GatepostNotScraped", "GatepostNotReady", "GatepostPanics", "GatepostStorageUnavailable",
            "GatepostStorageFailures", "GatepostSegmentGivenUp", "GatepostResourcesShort", "GatepostAllNextHopsDown"}

# Refusals that this life has no occasion for: it does not end, has disk and memory, no shard hangs, and no
# name server knows of a block list.
UNMET = {"shutdown", "resources", "shard_unavailable", "dnsbl"}


@case
def rules_are_rules_and_do_what_their_tests_say():
    directory = SCRATCH / "rules"
    shutil.copytree(RULES, directory)
    run("promtool", "check", "rules", directory / "gatepost.rules.yml")
    run("promtool", "check", "config", directory / "scrape.yml")
    print("   ", run("promtool", "test", "rules", directory / "gatepost.rules.test.yml", both=True).decode().split()[-1])


@case
def dashboards_are_what_the_generator_writes():
    run(sys.executable, "-B", ROOT / "grafana" / "generate.py", "--check")
    assert len(DASHBOARDS) == 6, DASHBOARDS


@case
def a_scrape_has_nothing_that_promtool_minds():
    with Gateway() as gateway:
        text = "".join(f"{line}\n" for line in gateway.scrape())
    run("promtool", "check", "metrics", input=text.encode())


def filled_in(text):
    """A query with what Grafana would put in place of its variables."""
    for variable, value in (("$__rate_interval", "20s"), ("$__range", "2m"), ("$job", ".*"), ("$instance", ".*")):
        text = text.replace(variable, value)
    assert "$" not in text, text
    return text


def panels():
    """Every query of every panel: where it stands, and the query."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.name}, {panel['title']}, {target['legendFormat']}", filled_in(target["expr"])


def variables():
    """Every variable that is asked for: where it stands, the selector and the label."""
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                yield f"{path.name}, {variable['name']}", filled_in(selector), label


def without_data(prometheus, queries):
    """Those that find nothing, or no number."""
    found = {place: prometheus.query(query) for place, query in queries.items()}
    return {place: queries[place] for place, samples in found.items() if all(math.isnan(value) for _, value in samples)}


def alerts(prometheus, *states):
    """The alerts in these states."""
    return {rule["name"] for rule in prometheus.rules() if rule["type"] == "alerting" and rule["state"] in states}


def reasons(prometheus, condition):
    """The reasons of refusals whose number is so, in sessions and at connect."""
    refusals = '{__name__=~"gatepost_refusals_total|gatepost_connections_refused_total"}'
    return {labels["reason"] for labels, _ in prometheus.query(f"sum by (reason) ({refusals}) {condition}")}


@case
def every_panel_and_every_rule_finds_what_there_is():
    with Life() as life, Prometheus(life.gateway.metrics, RULES / "gatepost.rules.yml") as prometheus:
        queries = dict(panels())
        assert len(queries) == len(list(panels())) > 100, "panels and legends of one name"
        missing = dict(queries)

        def all_have_data():
            nonlocal missing
            missing = without_data(prometheus, missing)
            return not missing
        try:
            until("every query finds something", all_have_data)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *(f"{place}: {query}" for place, query in missing.items())])) from error
        for place, selector, label in variables():
            assert prometheus.ask(f"label/{label}/values", {"match[]": selector}), place
        for path in DASHBOARDS:
            for annotation in json.loads(path.read_text())["annotations"]["list"]:
                prometheus.query(filled_in(annotation["expr"]))
        for alert in sorted(WANTED):
            until(f"{alert} is set off", lambda alert=alert: alert in alerts(prometheus, "pending", "firing"))
        until("every rule was evaluated", lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()))
        rules = prometheus.rules()
        faults = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok" or rule.get("lastError")]
        assert not faults, faults
        # A scrape that came late may have been on the way to one.
        wrong = UNWANTED & alerts(prometheus, "firing")
        assert not wrong, wrong
        until("there are refusals of every kind", lambda: not reasons(prometheus, "== 0") - UNMET)
        print(f"    {len(queries)} queries, {len(rules)} rules, refusals for {len(reasons(prometheus, '> 0'))} reasons; "
              f"alerts: {', '.join(sorted(alerts(prometheus, 'pending', 'firing')))}")
        run("promtool", "check", "metrics", input="".join(f"{line}\n" for line in life.gateway.scrape()).encode())


if __name__ == "__main__":
    sys.exit(main())
