//! `/metrics`: the library's figures and the server's own, for Prometheus.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bitnet::MetricsCollector;

use crate::state::App;

/// All figures. While there is no model, those of the server alone.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let engines = app.engines().ok();
    let collector = engines.as_ref().and_then(|engines| engines.model().metrics());
    let mut text = collector.map(MetricsCollector::render).unwrap_or_default();
    own(&app, &mut text);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static(MetricsCollector::MEDIA_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn own(app: &App, text: &mut String) {
    let mut line =
        |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("a text takes all");
    let name = "bitnet_http_requests_total";
    line(format_args!("# HELP {name} Requests answered, by path and status."));
    line(format_args!("# TYPE {name} counter"));
    for ((path, status), count) in app.counts.all() {
        line(format_args!("{name}{{path=\"{path}\",status=\"{status}\"}} {count}"));
    }
    let name = "bitnet_http_requests_under_way";
    line(format_args!(
        "# HELP {name} Requests that have been let in and are not answered in full."
    ));
    line(format_args!("# TYPE {name} gauge"));
    line(format_args!("{name} {}", app.drain.under_way()));
}
