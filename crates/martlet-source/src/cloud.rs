//! Buckets and web servers, by the crate `object_store`: requests, signatures, retries with growing pauses.

use crate::{Entry, Key, Objects, Put, Result, Room, SourceError};
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode,
    PutPayload, RetryConfig,
};
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use url::Url;

/// How long a server is waited for, and how often it is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A connection is there after this time, or it never will be.
    pub connect: Duration,
    /// An answer that does not go on for so long never will.
    pub stall: Duration,
    /// Tries after the first, of what may go better another time (broken connections, 429, 5xx).
    pub retries: usize,
    /// No more tries after this time.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            retries: 6,
            total: Duration::from_secs(90),
        }
    }
}

/// Requests to all remotes.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // Two TLS implementations are linked or may be; one has to be named.
    let _ = rustls::crypto::ring::default_provider().install_default(); // somebody else has
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("remote")
        .enable_all()
        .build()
        .expect("threads can be started")
});

/// Who we are to a bucket.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the access key.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Cloud {
    store: Arc<dyn ObjectStore>,
    place: String,
    prefix: Path,
    is_writable: bool,
}

impl Cloud {
    /// A bucket of an S3-compatible server: `s3://BUCKET/PREFIX`, at `endpoint` unless it is Amazon's. Without credentials
    /// those of the environment are used, as other programs do (`AWS_ACCESS_KEY_ID` and so on).
    pub fn bucket(
        address: &Url,
        endpoint: Option<&Url>,
        region: Option<&str>,
        credentials: Option<&Credentials>,
        patience: Patience,
    ) -> Result<Self> {
        let bad = |reason: &str| SourceError::BadAddress {
            address: address.to_string(),
            reason: reason.into(),
        };
        let bucket = address
            .host_str()
            .filter(|_| address.scheme() == "s3")
            .ok_or_else(|| bad("it is not of the form s3://BUCKET/PREFIX"))?;
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(retry(patience))
            .with_client_options(options(patience));
        if let Some(endpoint) = endpoint {
            builder = builder
                .with_endpoint(endpoint.as_str().trim_end_matches('/'))
                .with_allow_http(endpoint.scheme() == "http");
        }
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        if let Some(credentials) = credentials {
            builder = builder
                .with_access_key_id(&credentials.access_key_id)
                .with_secret_access_key(&credentials.secret_access_key);
        }
        LazyLock::force(&RUNTIME);
        let store = builder.build().map_err(|error| bad(&error.to_string()))?;
        Ok(Self {
            store: Arc::new(store),
            place: address.to_string(),
            prefix: Path::from_url_path(address.path()).map_err(|error| bad(&error.to_string()))?,
            is_writable: true,
        })
    }

    /// What a web server serves below an address: only to be read, and only by name.
    pub fn web(address: &Url, patience: Patience) -> Result<Self> {
        LazyLock::force(&RUNTIME);
        let store = HttpBuilder::new()
            .with_url(address.as_str())
            .with_retry(retry(patience))
            .with_client_options(options(patience).with_allow_http(true))
            .build()
            .map_err(|error| SourceError::BadAddress {
                address: address.to_string(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            store: Arc::new(store),
            place: address.to_string(),
            prefix: Path::default(),
            is_writable: false,
        })
    }

    fn path(&self, key: &Key) -> Path {
        self.room(key.room()).join(key.name())
    }

    fn room(&self, room: Room) -> Path {
        self.prefix.clone().join(room.as_str())
    }

    fn failure(&self, key: Option<&Key>, action: &'static str, error: Error) -> SourceError {
        let (place, reason) = (self.place(), error.to_string());
        match (error, key) {
            (Error::NotFound { .. }, Some(key)) => SourceError::NotFound {
                place,
                key: key.clone(),
            },
            (
                Error::PermissionDenied { .. }
                | Error::Unauthenticated { .. }
                | Error::NotSupported { .. }
                | Error::NotImplemented { .. }
                | Error::NotFound { .. },
                _,
            ) => SourceError::Refused {
                place,
                action,
                reason,
            },
            _ => SourceError::Unavailable {
                place,
                action,
                reason,
            },
        }
    }

    fn to_write(&self) -> Result<()> {
        match self.is_writable {
            true => Ok(()),
            false => Err(SourceError::ReadOnly { place: self.place() }),
        }
    }

    /// Asks for an object, or a part of it, and hands its bytes on as they come. How many there were, which is no more than it may
    /// have.
    fn read(
        &self,
        key: &Key,
        range: Option<GetRange>,
        size_bytes_max: u64,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<u64> {
        let action = if range.is_some() { "read a part of" } else { "read" };
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let answer = self.ask(self.store.get_opts(&self.path(key), options));
        let answer = answer.map_err(|error| self.failure(Some(key), action, error))?;
        let too_large = |size_bytes: u64| SourceError::Wrong {
            place: self.place(),
            key: key.clone(),
            reason: format!("{size_bytes} bytes; at most {size_bytes_max} are expected"),
        };
        let size_bytes = answer.range.end.saturating_sub(answer.range.start);
        if size_bytes > size_bytes_max {
            return Err(too_large(size_bytes));
        }
        let mut pieces = answer.into_stream();
        let mut so_far = 0;
        // Whoever takes a piece may ask for something else.
        while let Some(piece) = self.ask(pieces.next()) {
            let piece = piece.map_err(|error| self.failure(Some(key), action, error))?;
            so_far += piece.len() as u64;
            if so_far > size_bytes_max {
                return Err(too_large(so_far));
            }
            each(&piece)?;
        }
        Ok(so_far)
    }

    fn ask<T>(&self, request: impl Future<Output = T>) -> T {
        RUNTIME.block_on(request)
    }
}

impl Objects for Cloud {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(key, None, size_bytes_max, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(range.end.saturating_sub(range.start) as usize);
        self.read_range(key, range, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn read_range(
        &self,
        key: &Key,
        range: Range<u64>,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let size_bytes = range.end - range.start;
        let part = GetRange::Bounded(range.clone());
        match self.read(key, Some(part), size_bytes, each)? == size_bytes {
            true => Ok(()),
            false => Err(SourceError::Wrong {
                place: self.place(),
                key: key.clone(),
                reason: format!("it ends before byte {}", range.end),
            }),
        }
    }

    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.to_write()?;
        let payload = PutPayload::from(bytes.to_vec());
        self.ask(async {
            let path = self.path(key);
            match self.store.put_opts(&path, payload, PutMode::Create.into()).await {
                Ok(_) => Ok(Put::Made),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Put::WasThere),
                Err(error) => Err(self.failure(None, "write", error)),
            }
        })
    }

    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        self.to_write()?; // a web server lists nothing
        let prefix = self.room(room);
        let listed = self.store.list(Some(&prefix)).try_collect::<Vec<_>>();
        let mut entries: Vec<Entry> = self.ask(async {
            let metas = listed.await.map_err(|error| self.failure(None, "list", error))?;
            // Objects of other names are none of ours.
            let entry = |meta: object_store::ObjectMeta| {
                let name = meta
                    .location
                    .prefix_match(&prefix)?
                    .map(|part| part.as_ref().to_owned());
                let name: Vec<String> = name.collect();
                let [name] = &name[..] else { return None };
                Some(Entry {
                    key: Key::new(room, name.as_str())?,
                    size_bytes: meta.size,
                })
            };
            Ok::<_, SourceError>(metas.into_iter().filter_map(entry).collect())
        })?;
        entries.sort();
        Ok(entries)
    }

    fn remove(&self, key: &Key) -> Result<()> {
        self.to_write()?;
        self.ask(async {
            match self.store.delete(&self.path(key)).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.failure(None, "remove", error)),
            }
        })
    }
}

fn retry(patience: Patience) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: patience.retries,
        retry_timeout: patience.total,
    }
}

fn options(patience: Patience) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(patience.connect)
        // A whole request may take its time; what stalls is cut off.
        .with_timeout_disabled()
        .with_read_timeout(patience.stall)
}
