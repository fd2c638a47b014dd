//! The least that bytes of another host cost: a question and its answer over a connection that is open already.

use super::{Site, lab_failed};
use crate::BenchError;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// As long as the name of an object; it begins with how long the answer is to be.
const QUESTION_BYTES: usize = 33;
const LENGTH_BYTES: usize = 4;

/// A connection from one site to another, where a thread answers.
#[derive(Debug)]
pub struct Bare {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Bare {
    /// Opens it.
    pub fn between(asking: &Site, answering: &Site) -> Result<Self, BenchError> {
        let address = answering.host.address();
        let listener = answering.host.run(|| TcpListener::bind((address, 0)));
        let listener = listener.map_err(lab_failed)?.map_err(BenchError::io("listen"))?;
        let address = listener.local_addr().map_err(BenchError::io("listen"))?;
        let stream = asking.host.run(|| TcpStream::connect(address));
        let stream = stream.map_err(lab_failed)?.map_err(BenchError::io("connect"))?;
        stream
            .set_nodelay(true)
            .map_err(BenchError::io("set a connection up"))?;
        std::thread::Builder::new()
            .name("bare answers".into())
            .spawn(move || listener.accept().and_then(|(stream, _)| answer_all(stream)))
            .map_err(BenchError::io("start a thread"))?;
        Ok(Self {
            stream,
            answer: Vec::new(),
        })
    }

    /// How long an answer of so many bytes takes, in milliseconds.
    pub fn exchange(&mut self, answer_bytes: usize) -> Result<f64, BenchError> {
        let mut question = [0; QUESTION_BYTES];
        question[..LENGTH_BYTES].copy_from_slice(&(answer_bytes as u32).to_le_bytes());
        self.answer.resize(answer_bytes, 0);
        let begun = Instant::now();
        self.stream
            .write_all(&question)
            .and_then(|()| self.stream.read_exact(&mut self.answer))
            .map_err(BenchError::io("ask over a bare connection"))?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

/// Answers until nobody asks any more.
fn answer_all(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut question, mut answer) = ([0; QUESTION_BYTES], Vec::new());
    loop {
        stream.read_exact(&mut question)?;
        let [a, b, c, d, ..] = question;
        answer.resize(u32::from_le_bytes([a, b, c, d]) as usize, 0);
        stream.write_all(&answer)?;
    }
}
