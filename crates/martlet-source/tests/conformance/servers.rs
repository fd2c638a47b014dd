//! Real servers, each with a directory and a port of its own, ended with the test.

use crate::liar::address;
use martlet_source::{Cloud, Credentials, Login, Patience, Registry};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use url::Url;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A process that ends with the test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, port: u16) -> Self {
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = Self(command.spawn().unwrap_or_else(|error| {
            panic!(
                "{:?}: {error}; script/bootstrap --tests installs it",
                command.get_program()
            )
        }));
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = server.0.try_wait().unwrap() {
                panic!("{:?} {status}", command.get_program());
            }
            assert!(
                Instant::now() < deadline,
                "{:?} does not listen",
                command.get_program()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended
        let _ = self.0.wait();
    }
}

/// Ports that nobody listens at.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// busybox's web server.
pub struct Web {
    port: u16,
    _server: Server,
}

impl Web {
    pub fn serve(dir: &Path) -> Self {
        let [port] = free_ports();
        let mut command = Command::new("busybox");
        command
            .args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h"])
            .arg(dir);
        Self {
            port,
            _server: Server::start(&mut command, port),
        }
    }

    pub fn address(&self) -> Url {
        address(self.port)
    }
}

/// SeaweedFS with one bucket.
pub struct Bucket {
    port: u16,
    ports: [u16; 8],
    _server: Server,
    _dir: tempfile::TempDir,
}

impl Bucket {
    const NAME: &str = "martlet";
    const KEY: &str = "martlet-key";
    const SECRET: &str = "martlet-secret";

    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("s3.json");
        let identity = format!(
            r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],"actions":["Admin","Read","Write","List"]}}]}}"#,
            Self::KEY,
            Self::SECRET
        );
        std::fs::write(&config, identity).unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let ports = free_ports();
        let [
            s3,
            master,
            master_grpc,
            volume,
            volume_grpc,
            filer,
            filer_grpc,
            s3_grpc,
        ] = ports;
        let mut command = Command::new("weed");
        command
            .current_dir(dir.path())
            .args([
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-s3",
                "-master.telemetry=false",
            ])
            .args(["-master.volumeSizeLimitMB=64", "-volume.max=20"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-s3.port.grpc={s3_grpc}"))
            .arg(format!("-master.port={master}"))
            .arg(format!("-master.port.grpc={master_grpc}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-volume.port.grpc={volume_grpc}"))
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-filer.port.grpc={filer_grpc}"));
        let server = Server::start(&mut command, s3);
        let bucket = Self {
            port: s3,
            ports,
            _server: server,
            _dir: dir,
        };
        bucket.make();
        bucket
    }

    /// Makes the bucket, once the server can.
    fn make(&self) {
        let deadline = Instant::now() + START_TIMEOUT;
        let made = || {
            let url = format!("{}{}", address(self.port), Self::NAME);
            let user = format!("{}:{}", Self::KEY, Self::SECRET);
            let status = Command::new("curl")
                .args([
                    "-fsS",
                    "--max-time",
                    "10",
                    "-X",
                    "PUT",
                    "--aws-sigv4",
                    "aws:amz:us-east-1:s3",
                ])
                .args(["--user", &user, &url])
                .stderr(Stdio::null())
                .status();
            status.unwrap().success()
        };
        while !made() {
            assert!(Instant::now() < deadline, "no bucket can be made");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub fn remote(&self, prefix: &str) -> Cloud {
        let url = Url::parse(&format!("s3://{}/{prefix}", Self::NAME)).unwrap();
        let credentials = Credentials {
            access_key_id: Self::KEY.into(),
            secret_access_key: Self::SECRET.into(),
        };
        let endpoint = address(self.port);
        Cloud::bucket(
            &url,
            Some(&endpoint),
            Some("us-east-1"),
            Some(&credentials),
            Patience::default(),
        )
        .unwrap()
    }
}

/// Debian's registry of images, with or without a password.
pub struct ImageRegistry {
    port: u16,
    _server: Server,
    _dir: tempfile::TempDir,
}

impl ImageRegistry {
    pub const USER: &str = "martlet";
    pub const PASSWORD: &str = "right";
    /// Of the password, by `crypt`.
    const HASH: &str = "$2y$05$martletmartletmartletO6nTpz3ZDECRncvg37cjcc2q5..BFOti";

    pub fn open() -> Self {
        Self::start("")
    }

    pub fn with_password() -> Self {
        Self::start("auth: {htpasswd: {realm: martlet, path: users}}")
    }

    fn start(auth: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [port] = free_ports();
        let users = format!("{}:{}\n", Self::USER, Self::HASH);
        std::fs::write(dir.path().join("users"), users).unwrap();
        let config = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: data}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n\
             {auth}\n"
        );
        std::fs::write(dir.path().join("c.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.current_dir(dir.path()).args(["serve", "c.yml"]);
        Self {
            port,
            _server: Server::start(&mut command, port),
            _dir: dir,
        }
    }

    pub fn remote(&self, repository: &str, password: Option<&str>) -> Registry {
        let url = Url::parse(&format!("oci://127.0.0.1:{}/{repository}", self.port)).unwrap();
        let login = password.map(|password| Login {
            user: Self::USER.into(),
            password: password.into(),
        });
        Registry::new(&url, login, Patience::default()).unwrap()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // It makes sockets there whatever it is told.
        for entry in std::fs::read_dir("/tmp").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours =
                |port: &u16| name.starts_with("seaweedfs-") && name.ends_with(&format!("-{port}.sock"));
            if self.ports.iter().any(is_ours) {
                let _ = std::fs::remove_file(entry.path()); // only untidy
            }
        }
    }
}
