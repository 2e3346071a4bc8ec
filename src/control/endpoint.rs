//! The HTTP endpoint for who watches the gateway.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | every metric, in Prometheus' text format 0.0.4 |
//! | `/healthz` | 200 as long as the process lives |
//! | `/readyz` | 200 while mail is accepted, else 503 with the reason |
//!
//! Served on the control thread. On failure: a connection that is slow to send its request is closed,
//! and beyond a number of connections new ones wait.

use crate::delivery::Availability;
use crate::limits::{METRICS_CONNECTIONS_MAX, METRICS_REQUEST_MS};
use crate::metrics;
use crate::shard::{NextHop, Shared};
use ::metrics::gauge;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_process::Collector;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// What the answers are made of.
struct Watched {
    recorder: PrometheusHandle,
    shared: Arc<Shared>,
    process: Collector,
}

/// Answers requests until the process ends.
pub async fn serve(listener: TcpListener, recorder: PrometheusHandle, shared: Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let process = Collector::default();
    process.describe();
    let watched = Arc::new(Watched { recorder, shared, process });
    let places = Arc::new(Semaphore::new(METRICS_CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: accept would fail again at once.
            tokio::time::sleep(Duration::from_millis(METRICS_REQUEST_MS / 100)).await;
            continue;
        };
        let watched = watched.clone();
        tokio::spawn(async move {
            let service = service_fn(async |request| Ok::<_, Infallible>(watched.answer(&request)));
            // A scrape that breaks off is the scraper's affair.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_millis(METRICS_REQUEST_MS))
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

impl Watched {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let (status, body) = match request.uri().path() {
            "/metrics" | "/healthz" | "/readyz" if !is_read => {
                (StatusCode::METHOD_NOT_ALLOWED, "GET is all that is answered\n".to_owned())
            }
            "/metrics" => (StatusCode::OK, self.scrape()),
            "/healthz" => (StatusCode::OK, "alive\n".to_owned()),
            "/readyz" => match self.shared.unreadiness() {
                None => (StatusCode::OK, "ready\n".to_owned()),
                Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
            },
            _ => (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let text = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text);
        response
    }

    /// Shows what is kept elsewhere, then all.
    fn scrape(&self) -> String {
        let (shared, now) = (&self.shared, Instant::now());
        gauge!(metrics::CONNECTIONS).set(shared.connections());
        gauge!(metrics::BODY_MEMORY).set(shared.body_octets() as f64);
        gauge!(metrics::READY).set(if shared.unreadiness().is_none() { 1.0 } else { 0.0 });
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let age_ms = shared.oldest_arrival().map_or(0, |arrived_ms| unix_ms.saturating_sub(arrived_ms));
        gauge!(metrics::QUEUE_OLDEST_SECONDS).set(Duration::from_millis(age_ms).as_secs_f64());
        let now_ms = shared.ms(now);
        let is_up = |next_hop: &&NextHop| next_hop.availability(now_ms) == Availability::Up;
        let up = shared.next_hops().iter().filter(is_up).count();
        gauge!(metrics::NEXT_HOPS, "state" => "up").set(up as f64);
        gauge!(metrics::NEXT_HOPS, "state" => "down").set((shared.next_hops().len() - up) as f64);
        self.process.collect();
        self.recorder.render()
    }
}
