//! The programs of the guests that are none.

use martlet_api::*;
use martletd::control::*;
use std::sync::mpsc::{Receiver, Sender, SyncSender};

pub enum ToCommand {
    Stdin(Vec<u8>),
    End,
    Resize(TtySize),
    Signal(i32),
}

pub struct Input(pub Sender<ToCommand>);

impl Input {
    fn send(&self, message: ToCommand) -> Answer<()> {
        self.0
            .send(message)
            .map_err(|_| Problem::new(ProblemCode::WrongState, "the command has ended"))
    }
}

impl ExecInput for Input {
    fn stdin(&mut self, bytes: &[u8]) -> Answer<()> {
        self.send(ToCommand::Stdin(bytes.to_vec()))
    }
    fn stdin_end(&mut self) -> Answer<()> {
        self.send(ToCommand::End)
    }
    fn resize(&mut self, size: TtySize) -> Answer<()> {
        self.send(ToCommand::Resize(size))
    }
    fn signal(&mut self, signal: i32) -> Answer<()> {
        self.send(ToCommand::Signal(signal))
    }
}

/// The guest's programs: `env`, `cat`, `big BYTES`, `exit CODE`, `die SIGNAL`, `wait` (for a signal), `size` (of the terminal, at each
/// change, until input), and whatever else there is not.
pub fn command(request: &ExecRequest, input: &Receiver<ToCommand>, events: &SyncSender<ExecEvent>) {
    let say = |text: String| events.send(ExecEvent::Stdout(text.into_bytes())).unwrap_or(());
    let exit = |status| events.send(ExecEvent::Exit(status)).unwrap_or(());
    let number = || request.argv[1].parse::<i32>().unwrap();
    match request.argv[0].as_str() {
        "env" => {
            let ExecRequest {
                env,
                cwd,
                user,
                tty,
                stdin,
                ..
            } = request;
            say(format!("{env:?} {cwd:?} {user:?} {} {stdin}\n", tty.is_some()));
        }
        "cat" => {
            while let Ok(ToCommand::Stdin(bytes)) = input.recv() {
                events.send(ExecEvent::Stdout(bytes)).unwrap_or(());
            }
            events
                .send(ExecEvent::Stderr(b"cat has seen the end\n".to_vec()))
                .unwrap_or(());
        }
        "big" => {
            let mut left = number() as usize;
            while left > 0 {
                let length = left.min(100_000);
                left -= length;
                if events.send(ExecEvent::Stdout(vec![b'x'; length])).is_err() {
                    return;
                }
            }
        }
        "exit" => return exit(ExitStatus::Code(number())),
        "die" => return exit(ExitStatus::Signal(number())),
        "wait" => {
            say("waiting\n".into());
            for message in input {
                if let ToCommand::Signal(signal) = message {
                    say(format!("got signal {signal}\n"));
                    return exit(ExitStatus::Signal(signal));
                }
            }
        }
        "size" => {
            let size = request.tty.unwrap();
            say(format!("{} {}\r\n", size.rows, size.cols));
            for message in input {
                match message {
                    ToCommand::Resize(size) => say(format!("{} {}\r\n", size.rows, size.cols)),
                    ToCommand::Stdin(bytes) => {
                        say(format!("typed {bytes:?}\r\n"));
                        break;
                    }
                    _ => (),
                }
            }
        }
        other => {
            let problem = Problem::new(
                ProblemCode::NotFound,
                format!("there is no program {other} in the guest"),
            );
            return events.send(ExecEvent::Problem(problem)).unwrap_or(());
        }
    }
    exit(ExitStatus::Code(0));
}
