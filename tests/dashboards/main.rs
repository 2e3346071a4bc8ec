//! Dashboards, rules and their documentation refer to metrics that there are: every name, label and
//! label's value of every query is held against the table of metrics, and every metric is used somewhere.
//!
//! Whether the queries find something in a gateway's life is what `.ci/suites/observe.py` looks at.

mod promql;
mod rules;

use gatepost::metrics::{ALL, Kind, Metric, limit};
use gatepost::smtp::reply::Reply;
use promql::{Query, Selector};
use rules::Rule;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Metrics that are not the gateway's own: of metrics-process, and what Prometheus says of a target.
const FOREIGN: &[&str] = &[
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
    "up",
];
/// What Prometheus labels every metric of a target with.
const OF_EVERY_TARGET: &[&str] = &["job", "instance"];
/// Ranges of a dashboard's queries: those that Grafana fits to what is shown.
const RANGES: &[&str] = &["$__rate_interval", "$__range"];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn the_rules() -> Vec<Rule> {
    rules::read(&text("deploy/prometheus/gatepost.rules.yml")).unwrap()
}

/// Every dashboard, by its file's name.
fn dashboards() -> Vec<(String, Value)> {
    let mut found: Vec<(String, Value)> = fs::read_dir(file("grafana"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let json = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            (name, json)
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

/// Its panels, without the rows' headings.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

/// The values of a list's entries under this key.
fn each<'a>(list: &'a Value, key: &'a str) -> impl Iterator<Item = &'a str> {
    list.as_array().unwrap().iter().map(move |entry| entry[key].as_str().unwrap())
}

/// Where each query stands, and the query.
fn queries() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            let place = format!("{name}, {}", panel["title"]);
            found.extend(each(&panel["targets"], "expr").map(|query| (place.clone(), query.to_owned())));
        }
        let annotations = each(&dashboard["annotations"]["list"], "expr");
        found.extend(annotations.map(|query| (format!("{name}, annotations"), query.to_owned())));
    }
    found
}

/// What a query may use of a metric.
#[derive(Debug)]
struct Known {
    own: Option<&'static Metric>,
    labels: Vec<&'static str>,
}

/// Looks a metric up by its name in a query; the error says why there is none.
fn look_up(name: &str, recorded: &BTreeSet<String>) -> Result<Known, String> {
    let mut labels = OF_EVERY_TARGET.to_vec();
    if FOREIGN.contains(&name) || recorded.contains(name) {
        return Ok(Known { own: None, labels });
    }
    let find = |name: &str| ALL.iter().find(|metric| metric.name == name);
    let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| Some((find(name.strip_suffix(part)?)?, *part)));
    let own = match (find(name), parts) {
        (Some(Metric { kind: Kind::Histogram(_), .. }), _) => {
            return Err(format!("{name} is a histogram: _bucket, _sum or _count of it are there"));
        }
        (Some(metric), _) => metric,
        (None, Some((metric, part))) if matches!(metric.kind, Kind::Histogram(_)) => {
            if part == "_bucket" {
                labels.push("le");
            }
            metric
        }
        (None, _) => return Err(format!("there is no metric {name}")),
    };
    labels.extend(own.labels);
    Ok(Known { own: Some(own), labels })
}

/// Whether a label of this metric can have this value.
fn can_be(metric: &Metric, value: &str) -> bool {
    let (stem, is_begin) = value.strip_suffix(".*").map_or((value, false), |stem| (stem, true));
    let fits = |known: &str| if is_begin { known.starts_with(stem) } else { known == stem };
    let words = |text: &str| text.split(|character: char| !character.is_alphanumeric() && character != '_').any(fits);
    let of_replies = |reply: &Reply| reply.row().reason.is_some_and(fits) || limit(*reply).is_some_and(fits);
    words(metric.help) || Reply::ALL.iter().any(of_replies)
}

fn check_selector(selector: &Selector, recorded: &BTreeSet<String>) -> Result<Option<&'static str>, String> {
    let known = look_up(&selector.metric, recorded)?;
    for (label, value) in &selector.matchers {
        if !known.labels.contains(&label.as_str()) {
            return Err(format!("{} has no label {label}", selector.metric));
        }
        let Some(metric) = known.own.filter(|_| !OF_EVERY_TARGET.contains(&label.as_str())) else { continue };
        if let Some(value) = value.split('|').find(|value| !can_be(metric, value)) {
            return Err(format!("{label} of {} is never {value}", selector.metric));
        }
    }
    let is_range = selector.range.is_some();
    if known.own.is_some_and(|metric| matches!(metric.kind, Kind::Counter | Kind::Histogram(_))) && !is_range {
        return Err(format!("{} only grows: rate() or increase() of it says something", selector.metric));
    }
    Ok(known.own.map(|metric| metric.name))
}

/// The gateway's metrics that a query uses; the error says what is wrong with it.
fn check(text: &str, recorded: &BTreeSet<String>) -> Result<BTreeSet<&'static str>, String> {
    let query: Query = promql::read(text)?;
    let used: Result<Vec<_>, _> = query.selectors.iter().map(|selector| check_selector(selector, recorded)).collect();
    for clause in &query.clauses {
        for selector in query.operands(clause) {
            let labels = look_up(&selector.metric, recorded)?.labels;
            // Of what two operands are matched by, one may have more.
            let is_shared = matches!(clause.word.as_str(), "by" | "without");
            let unknown = |label: &&String| is_shared && !labels.contains(&label.as_str());
            if let Some(label) = clause.labels.iter().find(unknown) {
                return Err(format!("{} has no label {label}", selector.metric));
            }
        }
    }
    Ok(used?.into_iter().flatten().collect())
}

fn recorded() -> BTreeSet<String> {
    the_rules().into_iter().filter(|rule| !rule.is_alert).map(|rule| rule.name).collect()
}

#[test]
fn every_query_refers_to_what_there_is_and_every_metric_is_used() {
    let recorded = recorded();
    let mut used = BTreeSet::new();
    let mut faults = Vec::new();
    let of_rules = the_rules().into_iter().map(|rule| (rule.name, rule.expression));
    for (place, text) in queries().into_iter().chain(of_rules) {
        match check(&text, &recorded) {
            Ok(metrics) => used.extend(metrics),
            Err(fault) => faults.push(format!("{place}: {fault}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let unused: Vec<&str> = ALL.iter().map(|metric| metric.name).filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "in no dashboard and no rule: {unused:?}");
}

#[test]
fn a_wrong_query_is_found() {
    let recorded = BTreeSet::from(["a:b".to_owned()]);
    let right = [
        r#"sum by (job, reason) (rate(gatepost_refusals_total{reason=~"resources|block.*"}[5m])) / on (job) a:b"#,
        "sum by (le, shard) (rate(gatepost_shard_loop_lag_seconds_bucket[5m]))",
        r#"gatepost_next_hops{state="down"} > 0 or up == 0"#,
    ];
    for text in right {
        assert!(check(text, &recorded).is_ok(), "{text}: {:?}", check(text, &recorded));
    }
    let wrong = [
        "gatepost_redy",
        "b:a",
        "gatepost_ready_bucket",
        "gatepost_session_seconds",
        "rate(gatepost_session_seconds[5m])",
        "gatepost_refusals_total",
        r#"gatepost_ready{shard="0"}"#,
        r#"gatepost_next_hops{state="away"}"#,
        r#"rate(gatepost_refusals_total{reason=~"resources|bloc"}[5m])"#,
        "sum by (le) (rate(gatepost_session_seconds_count[5m]))",
        "sum by (state) (gatepost_next_hops + gatepost_ready)",
    ];
    for text in wrong {
        assert!(check(text, &recorded).is_err(), "{text}");
    }
}

#[test]
fn dashboards_are_whole() {
    let dashboards = dashboards();
    let uids: BTreeSet<&str> = dashboards.iter().map(|(_, dashboard)| dashboard["uid"].as_str().unwrap()).collect();
    assert_eq!(uids.len(), dashboards.len(), "{uids:?}");
    for (name, dashboard) in &dashboards {
        let variables: Vec<&str> = each(&dashboard["templating"]["list"], "name").collect();
        assert_eq!(variables, ["datasource", "job", "instance"], "{name}");
        assert!(dashboard["refresh"].is_string() && dashboard["schemaVersion"].is_u64(), "{name}");
        let all = dashboard["panels"].as_array().unwrap();
        let numbers: BTreeSet<u64> = all.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(numbers.len(), all.len(), "{name}: ids of panels");
        for panel in panels(dashboard) {
            let place = format!("{name}, {}", panel["title"]);
            let description = panel["description"].as_str().unwrap();
            assert!(description.contains("\n\nIf it looks bad: "), "{place}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{place}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{place}");
            for source in targets.iter().chain([panel]) {
                assert_eq!(source["datasource"]["uid"], "${datasource}", "{place}");
            }
        }
    }
}

#[test]
fn every_query_of_a_dashboard_follows_its_variables() {
    for (place, text) in queries() {
        for selector in promql::read(&text).unwrap().selectors {
            for label in OF_EVERY_TARGET {
                let follows = ((*label).to_owned(), format!("${label}"));
                assert!(selector.matchers.contains(&follows), "{place}: {label} of {}", selector.metric);
            }
            let range = selector.range.as_deref();
            assert!(range.is_none_or(|range| RANGES.contains(&range)), "{place}: {range:?} of {}", selector.metric);
        }
    }
}

/// The labels of what an alert's query finds.
fn labels_of_alert(rule: &Rule) -> BTreeSet<String> {
    let query = promql::read(&rule.expression).unwrap();
    let by = query.clauses.iter().filter(|clause| clause.word == "by").flat_map(|clause| clause.labels.clone());
    let mut labels: BTreeSet<String> = by.collect();
    if labels.is_empty() {
        let of_metrics =
            query.selectors.iter().flat_map(|selector| look_up(&selector.metric, &recorded()).unwrap().labels);
        labels.extend(of_metrics.map(str::to_owned));
    }
    labels
}

#[test]
fn alerts_say_how_bad_it_is_and_what_to_do() {
    for rule in the_rules().iter().filter(|rule| rule.is_alert) {
        let Rule { name, severity, summary, description, .. } = rule;
        assert!(name.starts_with("Gatepost"), "{name}");
        assert!(["critical", "warning"].contains(&severity.as_str()), "{name}: {severity}");
        assert!(!summary.is_empty() && description.len() > 60, "{name}");
        let labels = labels_of_alert(rule);
        let annotations = format!("{summary} {description}");
        for used in annotations.split("$labels.").skip(1) {
            let label = used.split(|character: char| !character.is_alphanumeric() && character != '_').next().unwrap();
            assert!(labels.contains(label), "{name} has no label {label}: {labels:?}");
        }
    }
}

/// The documentation has a row for each alert, in the order of the rules.
#[test]
fn the_table_of_alerts_is_that_of_the_rules() {
    let document = text("docs/observability.md");
    let rows: Vec<(&str, &str)> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `Gatepost"))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim);
            (cells.next().unwrap().trim_end_matches('`'), cells.next().unwrap())
        })
        .collect();
    let rules = the_rules();
    let alerts = rules.iter().filter(|rule| rule.is_alert);
    let wanted: Vec<(&str, &str)> =
        alerts.map(|rule| (rule.name.strip_prefix("Gatepost").unwrap(), rule.severity.as_str())).collect();
    assert_eq!(rows, wanted);
}
