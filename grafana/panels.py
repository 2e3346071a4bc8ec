"""What the dashboards are made of: queries, panels, rows, and how they become Grafana's JSON.

A query is PromQL in which every selector takes the dashboard's variables `job` and `instance`; the
functions here write it, so that none is forgotten. A panel says what it shows, and what to do if
that looks bad; both go into its description. Panels flow from left to right in rows of 24 columns.
"""

import dataclasses

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
# Grafana 11; later ones migrate it by themselves.
SCHEMA_VERSION = 39
GREEN, YELLOW, RED = "green", "yellow", "red"


# --- queries -------------------------------------------------------------------------------------


def series(metric, *matchers, over=None):
    """A metric of the instances that are chosen; `over`: a range vector."""
    every = ", ".join(['job=~"$job"', 'instance=~"$instance"', *matchers])
    selector = f"{metric}{{{every}}}"
    return f"{selector}[{over}]" if over else selector


def _aggregate(function, operand, by):
    clause = f" by ({by}) " if by else ""
    return f"{function}{clause}({operand})"


def total(metric, *matchers, by=None):
    """A gauge, summed over instances."""
    return _aggregate("sum", series(metric, *matchers), by)


def worst(metric, *matchers, by=None):
    """A gauge, the highest of all instances."""
    return _aggregate("max", series(metric, *matchers), by)


def least(metric, *matchers, by=None):
    """A gauge, the lowest of all instances."""
    return _aggregate("min", series(metric, *matchers), by)


def rate(metric, *matchers, by=None):
    """A counter, per second."""
    return _aggregate("sum", f"rate({series(metric, *matchers, over='$__rate_interval')})", by)


def increase(metric, *matchers, by=None):
    """A counter, over what is shown."""
    return _aggregate("sum", f"increase({series(metric, *matchers, over='$__range')})", by)


def quantile(share, metric, by=None):
    """A histogram's quantile, over all instances."""
    buckets = rate(f"{metric}_bucket", by=f"le, {by}" if by else "le")
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric, *shares):
    """Queries for several quantiles of a histogram."""
    return [(quantile(share, metric), f"p{round(100 * share)}") for share in shares or (0.5, 0.99)]


def mean(metric):
    """The mean of a histogram's samples."""
    return ratio(rate(f"{metric}_sum"), rate(f"{metric}_count"))


def ratio(part, whole):
    """One query's value, of another's."""
    return f"{part} / {whole}"


# --- panels --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Panel:
    """A graph of one or more queries, each with the legend of its series.

    `above` has the values from which on a colour holds, and green what is below the first one;
    `below` the other way round: the colour holds under the value.
    """

    title: str
    shows: str
    act: str
    queries: list
    unit: str = "short"
    above: list = dataclasses.field(default_factory=list)
    below: list = dataclasses.field(default_factory=list)
    stacked: bool = False
    width: int = 8
    height: int = 8

    kind = "timeseries"

    def thresholds(self):
        """Grafana's steps: the colour from each value on."""
        if self.below:
            # The colour below the lowest value comes first; above the highest it is green.
            values, colours = zip(*sorted(self.below))
            steps = list(zip((None, *values), (*colours, GREEN)))
        else:
            steps = [(None, GREEN), *sorted(self.above)]
        return {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in steps]}

    def defaults(self):
        """How fields are shown."""
        marks = "area" if self.below else "dashed" if self.above else "off"
        return {
            "unit": self.unit,
            "min": 0,
            "color": {"mode": "palette-classic"},
            "thresholds": self.thresholds(),
            "custom": {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 30 if self.stacked else 10,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": marks},
            },
        }

    def options(self):
        """How the panel is shown."""
        return {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }

    def targets(self):
        """The queries."""
        return [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend,
             "range": True, "instant": False}
            for number, (expression, legend) in enumerate(self.queries)
        ]

    def json(self, number, left, top):
        """The panel at its place."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": f"{self.shows}\n\nIf it looks bad: {self.act}",
            "datasource": DATASOURCE,
            "gridPos": {"x": left, "y": top, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": self.defaults(), "overrides": []},
            "options": self.options(),
            "targets": self.targets(),
        }


@dataclasses.dataclass
class Stat(Panel):
    """One number, coloured by its thresholds; `words` shows numbers as words, each with its colour."""

    width: int = 4
    height: int = 4
    words: dict = dataclasses.field(default_factory=dict)
    decimals: int | None = None

    kind = "stat"

    def defaults(self):
        shown = {"unit": self.unit, "color": {"mode": "thresholds"}, "thresholds": self.thresholds()}
        if self.decimals is not None:
            shown["decimals"] = self.decimals
        if self.words:
            options = {str(number): {"text": text, "color": colour, "index": index}
                       for index, (number, (text, colour)) in enumerate(self.words.items())}
            shown["mappings"] = [{"type": "value", "options": options}]
        return shown

    def options(self):
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background" if self.above or self.below or self.words else "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "textMode": "auto",
        }


@dataclasses.dataclass
class Row:
    """A heading and the panels below it."""

    title: str
    panels: list


@dataclasses.dataclass
class Dashboard:
    """A dashboard; `name` is its file's and, with `gatepost-`, its uid."""

    name: str
    title: str
    about: str
    rows: list

    def panels(self):
        """All panels in Grafana's form, rows and their panels in one list."""
        placed, top = [], 0
        for row in self.rows:
            placed.append({"id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                           "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1}})
            top, left, tallest = top + 1, 0, 0
            for panel in row.panels:
                if left + panel.width > COLUMNS:
                    top, left, tallest = top + tallest, 0, 0
                placed.append(panel.json(len(placed) + 1, left, top))
                left, tallest = left + panel.width, max(tallest, panel.height)
            top += tallest
        return placed

    def json(self):
        """The dashboard as Grafana imports it and provisions it from a file."""
        return {
            "uid": f"gatepost-{self.name}",
            "title": f"Gatepost: {self.title}",
            "description": self.about,
            "tags": ["gatepost", "smtp"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "browser",
            "links": [{"type": "dashboards", "title": "Gatepost", "tags": ["gatepost"], "asDropdown": True,
                       "includeVars": True, "keepTime": True, "targetBlank": False, "icon": "external link", "url": ""}],
            "annotations": {"list": [_restarts()]},
            "templating": {"list": _variables()},
            "panels": self.panels(),
        }


def _restarts():
    return {
        "name": "Restarts", "enable": True, "hide": False, "iconColor": "orange", "datasource": DATASOURCE,
        "expr": f"changes({series('process_start_time_seconds', over='$__rate_interval')}) > 0",
        "titleFormat": "restart", "textFormat": "{{instance}}", "step": "60s",
    }


def _variables():
    def labels(name, label, query):
        return {
            "name": name, "label": label, "type": "query", "datasource": DATASOURCE, "definition": query,
            "query": {"query": query, "refId": f"variable-{name}"},
            "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]}, "options": [], "hide": 0, "regex": "", "skipUrlSync": False,
        }

    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1, "regex": "",
         "multi": False, "includeAll": False, "current": {}, "options": [], "hide": 0, "skipUrlSync": False},
        labels("job", "Job", "label_values(gatepost_build_info, job)"),
        labels("instance", "Instance", 'label_values(gatepost_build_info{job=~"$job"}, instance)'),
    ]
