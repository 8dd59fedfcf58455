//! The address of a server: `http://host:port/base`.

use hyper::Uri;
use std::fmt;

/// A server's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name or an address, without brackets.
    pub host: String,
    /// 80 where the URL has none.
    pub port: u16,
    /// What comes before `/v1`: empty, or a path that starts with a slash and does not end with one.
    pub base: String,
}

/// A URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// TLS.
    #[error(
        "{0}: https is not spoken here; use the server's plain port, or bring it near: \
         `ssh -L 8000:localhost:PORT HOST`, then http://localhost:8000"
    )]
    Https(String),
    /// Anything but HTTP.
    #[error("{0}: the scheme {1} is not known; write http://HOST:PORT")]
    Scheme(String, String),
    /// No URL at all.
    #[error("'{0}' is not a URL; write http://HOST:PORT")]
    Malformed(String),
}

impl Target {
    /// Reads a URL; without a scheme it is http. A `/v1` at its end is dropped, because paths bring it.
    ///
    /// # Errors
    /// Another scheme, or no host.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let whole = if url.contains("://") { url.to_string() } else { format!("http://{url}") };
        let malformed = || TargetError::Malformed(url.to_string());
        let uri: Uri = whole.parse().map_err(|_| malformed())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(TargetError::Https(url.to_string())),
            other => return Err(TargetError::Scheme(url.to_string(), other.unwrap_or("").to_string())),
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or_else(malformed)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_string();
        // A port that is no number leaves `port_u16` empty too: it must not become 80 silently.
        let has_port = authority.as_str().rsplit('@').next().is_some_and(|rest| rest.len() != authority.host().len());
        let port = match (authority.port_u16(), has_port) {
            (Some(port), _) => port,
            (None, false) => 80,
            (None, true) => return Err(malformed()),
        };
        let path = uri.path().trim_end_matches('/');
        let base = path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/').to_string();
        Ok(Target { host, port, base })
    }

    /// `host:port`, as the Host header has it.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let check = |url: &str, wanted: &str| {
            let said = Target::parse(url).map_or_else(|error| error.to_string(), |target| target.to_string());
            assert!(said.contains(wanted), "{url}: {said}");
        };
        check("http://localhost:8000", "http://localhost:8000");
        check("localhost:8000/", "http://localhost:8000");
        check("http://10.0.0.1/v1/", "http://10.0.0.1:80");
        check("http://host:81/proxy/a/v1", "http://host:81/proxy/a");
        check("http://[::1]:8000", "http://[::1]:8000");
        check("https://host", "ssh -L");
        check("ftp://host", "the scheme ftp");
        check("http://", "is not a URL");
        check("", "is not a URL");
        check("http://host:99999", "is not a URL");
        check("a b", "is not a URL");
        assert_eq!(Target::parse("http://[::1]:8000").map(|target| target.host), Ok("::1".to_string()));
        assert_eq!(Target::parse("http://h:1/v1").map(|target| target.base), Ok(String::new()));
    }
}
