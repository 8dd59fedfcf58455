//! The page at `/`: chat, and a live view. One file without outside assets.

use axum::http::header;
use axum::response::IntoResponse;

/// Serves it. The policy lets it talk to this server and load nothing.
pub(crate) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    (headers, include_str!("page/page.html"))
}
