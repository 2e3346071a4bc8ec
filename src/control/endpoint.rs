//! The Prometheus endpoint: `GET /metrics`, text format 0.0.4.

use crate::limits::{METRICS_CONNECTIONS_MAX, METRICS_REQUEST_MS};
use crate::metrics;
use crate::shard::Shared;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Serves scrapes. A connection that is slow to send its request is closed, and beyond a number of
/// connections new ones wait.
pub async fn serve(listener: TcpListener, recorder: PrometheusHandle, shared: Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(METRICS_CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: accept would fail again at once.
            tokio::time::sleep(Duration::from_millis(METRICS_REQUEST_MS / 100)).await;
            continue;
        };
        let (recorder, shared) = (recorder.clone(), shared.clone());
        tokio::spawn(async move {
            let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request, &recorder, &shared)));
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

fn answer(request: &Request<Incoming>, recorder: &PrometheusHandle, shared: &Shared) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            ::metrics::gauge!(metrics::CONNECTIONS).set(shared.connections());
            ::metrics::gauge!(metrics::BODY_MEMORY).set(shared.body_octets() as f64);
            (StatusCode::OK, recorder.render())
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "GET /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let text = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
