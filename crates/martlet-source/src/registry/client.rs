//! Requests to a registry: each shows who we are, is tried again if it may go better, and takes no more than it expects.
//!
//! On `reqwest`, which is here for buckets. The crate `oci-client` removes nothing, follows no list to its next page, tries
//! nothing again, and brings a dozen crates.

use super::auth::{Challenge, Login, Pass};
use super::document::{Blob, Digest, MANIFEST, Tags};
use crate::{Patience, Result, SourceError};
use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LINK, LOCATION, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use url::{Host, Url};

const DOCUMENT_BYTES_MAX: u64 = 64 << 10;
/// Some list all at once.
const PAGE_BYTES_MAX: u64 = 64 << 20;
const TAGS_A_PAGE: &str = "1000";
/// An upload that is slower has stalled.
const BYTES_A_SECOND_MIN: u64 = 64 << 10;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Why there is no answer to use.
#[derive(Debug)]
pub enum Failure {
    /// There is no such thing.
    Missing(String),
    /// It will be the same another time.
    Refused(String),
    /// It may be otherwise another time.
    Unavailable(String),
    /// It is not what was asked for.
    Wrong(String),
}

impl Failure {
    /// Where something else than what was asked for is missing.
    fn of_another(self) -> Self {
        match self {
            Self::Missing(reason) => Self::Refused(reason),
            failure => failure,
        }
    }
}

pub type Tried<T> = std::result::Result<T, Failure>;

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Of the repository.
    base: Url,
    patience: Patience,
    login: Option<Login>,
    /// What to show, as last asked for.
    passes: Mutex<HashMap<Method, Pass>>,
}

impl Client {
    pub fn new(address: &Url, login: Option<Login>, patience: Patience) -> Result<Self> {
        LazyLock::force(&crate::cloud::RUNTIME);
        let bad = |reason: &str| SourceError::BadAddress {
            address: address.to_string(),
            reason: reason.into(),
        };
        let base = base(address)
            .ok_or_else(|| bad("it is not of the form oci://HOST[:PORT]/REPOSITORY, in small letters"))?;
        let http = reqwest::Client::builder()
            .connect_timeout(patience.connect)
            .https_only(base.scheme() == "https") // also where it sends us on to
            .build();
        Ok(Self {
            http: http.map_err(|error| bad(&words(error)))?,
            base,
            patience,
            login,
            passes: Mutex::default(),
        })
    }

    /// Tries until it goes well, or never will.
    pub async fn again<T>(&self, attempt: impl AsyncFn() -> Tried<T>) -> Tried<T> {
        let begun = Instant::now();
        let mut pause = PAUSE_MIN;
        for _ in 0..self.patience.retries {
            match attempt().await {
                Err(Failure::Unavailable(_)) if begun.elapsed() + pause < self.patience.total => {}
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause = PAUSE_MAX.min(pause * 2);
        }
        attempt().await
    }

    pub async fn manifest(&self, tag: &str) -> Tried<Vec<u8>> {
        let url = self.url(&format!("manifests/{tag}"));
        let answer = self.send(Method::GET, url, |request| request.header(ACCEPT, MANIFEST));
        self.body(answer.await?, DOCUMENT_BYTES_MAX).await
    }

    pub async fn put_manifest(&self, tag: &str, manifest: Bytes) -> Tried<()> {
        let url = self.url(&format!("manifests/{tag}"));
        let dress = |request: RequestBuilder| request.header(CONTENT_TYPE, MANIFEST).body(manifest.clone());
        let put = self.send(Method::PUT, url, dress).await;
        put.map(drop).map_err(Failure::of_another)
    }

    pub async fn remove_manifest(&self, manifest: &Digest) -> Tried<()> {
        let url = self.url(&format!("manifests/{manifest}"));
        self.send(Method::DELETE, url, |request| request).await.map(drop)
    }

    /// Of a blob, all or a part that is in it.
    pub async fn blob(&self, blob: &Blob, range: Option<Range<u64>>) -> Tried<Vec<u8>> {
        let bytes = range.clone().unwrap_or(0..blob.size_bytes);
        let answer = self.send(Method::GET, self.blob_url(blob), |request| match &range {
            Some(range) => request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1)),
            None => request,
        });
        let answer = answer.await?;
        if range.is_some() && answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(Failure::Wrong(format!(
                "asked for a part it answers {}",
                answer.status()
            )));
        }
        let expected = bytes.end - bytes.start;
        let body = self.body(answer, expected).await?;
        match body.len() as u64 == expected {
            true => Ok(body),
            false => Err(Failure::Wrong(format!("{} bytes came of {expected}", body.len()))),
        }
    }

    /// Puts a blob, if it is not there.
    pub async fn upload(&self, blob: &Blob, bytes: Bytes) -> Tried<()> {
        match self
            .send(Method::HEAD, self.blob_url(blob), |request| request)
            .await
        {
            Err(Failure::Missing(_)) => {}
            there => return there.map(drop),
        }
        let begin = self.send(Method::POST, self.url("blobs/uploads/"), |request| {
            request.header(CONTENT_LENGTH, 0)
        });
        let begun = begin.await.map_err(Failure::of_another)?;
        let mut location = header(begun.headers(), LOCATION.as_str())
            .and_then(|location| begun.url().join(location).ok())
            .ok_or_else(|| Failure::Refused("it does not say where to put a blob".into()))?;
        location
            .query_pairs_mut()
            .append_pair("digest", &blob.digest.to_string());
        let put = self.send(Method::PUT, location, |request| {
            request
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(bytes.clone())
        });
        put.await.map(drop).map_err(Failure::of_another)
    }

    /// The first page of tags.
    pub fn tags(&self) -> Url {
        let mut url = self.url("tags/list");
        url.query_pairs_mut().append_pair("n", TAGS_A_PAGE);
        url
    }

    pub async fn page(&self, page: &Url) -> Tried<Tags> {
        let answer = self.send(Method::GET, page.clone(), |request| request).await?;
        let next = header(answer.headers(), LINK.as_str()).and_then(next_of);
        let next = next.and_then(|link| answer.url().join(link).ok());
        if next.as_ref().is_some_and(|next| !self.is_ours(next)) {
            return Err(Failure::Wrong("its list of tags goes on somewhere else".into()));
        }
        Tags::read(&self.body(answer, PAGE_BYTES_MAX).await?, next)
    }

    fn url(&self, path: &str) -> Url {
        self.base.join(path).expect("tags and digests are paths")
    }

    fn blob_url(&self, blob: &Blob) -> Url {
        self.url(&format!("blobs/{}", blob.digest))
    }

    fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    fn passes(&self) -> MutexGuard<'_, HashMap<Method, Pass>> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, with what the registry wants to see of us, which it alone does.
    async fn send(
        &self,
        method: Method,
        url: Url,
        dress: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Tried<Response> {
        let request = || dress(self.http.request(method.clone(), url.clone()));
        let pass = self.passes().get(&method).filter(|_| self.is_ours(&url)).cloned();
        let shown = match pass {
            Some(pass) => pass.show(request()),
            None => request(),
        };
        let answer = self.once(shown).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !self.is_ours(answer.url()) {
            return self.success(answer).await;
        }
        let Some(pass) = self.pass(answer.headers()).await? else {
            return self.success(answer).await;
        };
        let answer = self.once(pass.show(request())).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            self.passes().insert(method.clone(), pass);
        }
        self.success(answer).await
    }

    /// What to show for a challenge.
    async fn pass(&self, headers: &HeaderMap) -> Tried<Option<Pass>> {
        let (realm, questions) = match Challenge::of(headers) {
            Some(Challenge::Basic) => return Ok(self.login.clone().map(Pass::Basic)),
            Some(Challenge::Bearer { realm, questions }) => (realm, questions),
            None => return Ok(None),
        };
        let odd = |what: &str| Failure::Refused(format!("{what} to give us a token"));
        let mut realm = Url::parse(&realm).map_err(|_| odd("nobody is named"))?;
        realm.query_pairs_mut().extend_pairs(questions);
        let request = self.http.get(realm);
        let request = match &self.login {
            Some(login) => request.basic_auth(&login.user, Some(&login.password)),
            None => request,
        };
        let answer = self.success(self.once(request).await?).await;
        let answer = self
            .body(answer.map_err(Failure::of_another)?, DOCUMENT_BYTES_MAX)
            .await?;
        Pass::of_answer(&answer)
            .map(Some)
            .ok_or_else(|| odd("who is named fails"))
    }

    async fn once(&self, request: RequestBuilder) -> Tried<Response> {
        let request = request.build().map_err(failure)?;
        let body = request.body().and_then(reqwest::Body::as_bytes);
        let seconds = body.map_or(0, |body| body.len() as u64 / BYTES_A_SECOND_MIN);
        let patience = self.patience.connect + self.patience.stall + Duration::from_secs(seconds);
        let sent = self.http.execute(request);
        in_time(patience, sent).await
    }

    async fn success(&self, answer: Response) -> Tried<Response> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = self.body(answer, DOCUMENT_BYTES_MAX).await.unwrap_or_default(); // the status is enough
        let errors = said(&body);
        let reason = match errors.first() {
            Some(error) => format!("{status}: {}", error.words()),
            None => status.to_string(),
        };
        // A registry says this for a moment of a blob that is here, while another client puts the same one.
        let is_being_put = errors.iter().any(|error| error.code == "MANIFEST_BLOB_UNKNOWN");
        Err(match status {
            StatusCode::NOT_FOUND => Failure::Missing(reason),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::CONFLICT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS => Failure::Unavailable(reason),
            _ if status.is_server_error() || is_being_put => Failure::Unavailable(reason),
            _ => Failure::Refused(reason),
        })
    }

    /// The body of an answer, of which no more is taken than it may have.
    async fn body(&self, mut answer: Response, size_bytes_max: u64) -> Tried<Vec<u8>> {
        let check = |size_bytes: u64| match size_bytes <= size_bytes_max {
            true => Ok(()),
            false => Err(Failure::Wrong(format!("more than {size_bytes_max} bytes come"))),
        };
        check(answer.content_length().unwrap_or(0))?;
        let mut body = Vec::with_capacity(answer.content_length().unwrap_or(0) as usize);
        while let Some(piece) = in_time(self.patience.stall, answer.chunk()).await? {
            check((body.len() + piece.len()) as u64)?;
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

async fn in_time<T>(patience: Duration, answer: impl Future<Output = reqwest::Result<T>>) -> Tried<T> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map_err(failure),
        Err(_) => Err(Failure::Unavailable(format!("nothing came for {patience:?}"))),
    }
}

fn failure(error: reqwest::Error) -> Failure {
    let is_final = error.is_builder() || error.is_redirect();
    match is_final {
        true => Failure::Refused(words(error)),
        false => Failure::Unavailable(words(error)),
    }
}

/// What an error says, and what is behind it. Addresses where a storage was sent to may be secret.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut behind = std::error::Error::source(&error);
    while let Some(error) = behind {
        words += &format!(": {error}");
        behind = error.source();
    }
    words
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The address in `<ADDRESS>; rel="next"`.
fn next_of(link: &str) -> Option<&str> {
    let (address, relation) = link.trim().strip_prefix('<')?.split_once('>')?;
    relation.contains("next").then_some(address)
}

/// One of the errors that a registry speaks of.
#[derive(Deserialize)]
struct Said {
    code: String,
    message: Option<String>,
}

impl Said {
    fn words(&self) -> String {
        let words = self.message.as_ref().unwrap_or(&self.code);
        words.chars().take(200).collect()
    }
}

fn said(body: &[u8]) -> Vec<Said> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Said>,
    }
    let errors = serde_json::from_slice(body);
    errors.map_or_else(|_| Vec::new(), |Errors { errors }| errors)
}

/// Where the API of a repository is. None if the address is none.
fn base(address: &Url) -> Option<Url> {
    let repository = address.path().strip_prefix('/')?;
    let is_part = |part: &str| {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        part.bytes().all(|byte| is_name(byte) || b"._-".contains(&byte))
            && part.bytes().next().is_some_and(is_name)
            && part.bytes().next_back().is_some_and(is_name)
    };
    let is_address = repository.split('/').all(is_part)
        && address.username().is_empty()
        && address.password().is_none()
        && address.query().is_none()
        && address.fragment().is_none();
    let scheme = match address.scheme() {
        _ if !is_address => return None,
        "oci" if is_here(&address.host()?) => "http",
        "oci" => "https",
        "oci+http" => "http",
        _ => return None,
    };
    let host = address.host_str()?;
    let port = address.port().map_or_else(String::new, |port| format!(":{port}"));
    Url::parse(&format!("{scheme}://{host}{port}/v2/{repository}/")).ok()
}

/// Is it this host?
fn is_here(host: &Host<&str>) -> bool {
    match host {
        // Not parsed as an address in an address of our own scheme.
        Host::Domain(name) => *name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_repositories() {
        let base = |address: &str| base(&Url::parse(address).unwrap()).map(String::from);
        for (address, expected) in [
            ("oci://a.test/x", "https://a.test/v2/x/"),
            ("oci://a.test:5000/x/y-1", "https://a.test:5000/v2/x/y-1/"),
            ("oci+http://a.test/x", "http://a.test/v2/x/"),
            ("oci://127.0.0.1:5000/x", "http://127.0.0.1:5000/v2/x/"),
            ("oci://[::1]:5000/x", "http://[::1]:5000/v2/x/"),
            ("oci://localhost/x", "http://localhost/v2/x/"),
            ("oci://localhost.a.test/x", "https://localhost.a.test/v2/x/"),
        ] {
            assert_eq!(base(address).as_deref(), Some(expected), "{address}");
        }
        for bad in [
            "oci://a.test",
            "oci://a.test/",
            "oci:///x",
            "oci://a.test/x/",
            "oci://a.test/X",
            "oci://a.test/x:tag",
            "oci://a.test/x/../y/.",
            "oci://user:password@a.test/x",
            "oci://a.test/x?y",
            "https://a.test/x",
        ] {
            assert_eq!(base(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_next_page_is_the_one_that_is_called_so() {
        assert_eq!(
            next_of(r#"</v2/x/tags/list?last=b&n=2>; rel="next""#),
            Some("/v2/x/tags/list?last=b&n=2")
        );
        for none in ["", "/v2/x", "</v2/x", r#"</v2/x>; rel="prev""#] {
            assert_eq!(next_of(none), None, "{none}");
        }
    }
}
