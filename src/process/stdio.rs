//! What a command's standard streams are, and the threads that carry bytes between the guest and
//! descriptors of the host.
//!
//! Such a thread ends with the stream it copies and with the machine. The one for standard input ends
//! with the command, also when the descriptor it reads never has anything to say.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::thread;

use super::{ChildStderr, ChildStdin, ChildStdout};
use crate::agent::protocol::{MAX_DATA, Mode};
use crate::agent::{Output, Stream};
use crate::sys::input::InterruptibleInput;

/// What one of a command's standard streams is connected to.
///
/// This corresponds to [`std::process::Stdio`]. Guest and host share no descriptors, so everything but
/// [`null`](Stdio::null) is a pipe in the guest, and bytes are carried between it and the host: a
/// program that asks whether it writes to a terminal hears no (but see
/// [`Command::pty`](super::Command::pty)), and what was read from an inherited
/// standard input but not by the command is lost.
#[derive(Debug)]
pub struct Stdio(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Piped,
    Inherit,
    File(File),
    Stdin(ChildStdin),
    Stdout(ChildStdout),
    Stderr(ChildStderr),
}

impl Stdio {
    /// A new pipe, whose other end is in the [`Child`](super::Child).
    pub fn piped() -> Self {
        Stdio(Kind::Piped)
    }

    /// The host process's own stream.
    pub fn inherit() -> Self {
        Stdio(Kind::Inherit)
    }

    /// The guest's `/dev/null`.
    pub fn null() -> Self {
        Stdio(Kind::Null)
    }
}

impl From<File> for Stdio {
    /// A file of the host.
    fn from(file: File) -> Self {
        Stdio(Kind::File(file))
    }
}

impl From<OwnedFd> for Stdio {
    /// A descriptor of the host.
    fn from(fd: OwnedFd) -> Self {
        File::from(fd).into()
    }
}

impl From<io::PipeReader> for Stdio {
    /// Input that is written to a pipe of the host.
    fn from(pipe: io::PipeReader) -> Self {
        OwnedFd::from(pipe).into()
    }
}

impl From<io::PipeWriter> for Stdio {
    /// Output that goes to a pipe of the host.
    fn from(pipe: io::PipeWriter) -> Self {
        OwnedFd::from(pipe).into()
    }
}

impl From<ChildStdin> for Stdio {
    /// Output that goes to another command's standard input.
    fn from(stdin: ChildStdin) -> Self {
        Stdio(Kind::Stdin(stdin))
    }
}

impl From<ChildStdout> for Stdio {
    /// Input that another command writes.
    fn from(stdout: ChildStdout) -> Self {
        Stdio(Kind::Stdout(stdout))
    }
}

impl From<ChildStderr> for Stdio {
    /// Input that another command writes to its standard error.
    fn from(stderr: ChildStderr) -> Self {
        Stdio(Kind::Stderr(stderr))
    }
}

impl Kind {
    pub(super) fn mode(&self) -> Mode {
        if matches!(self, Kind::Null) { Mode::Null } else { Mode::Piped }
    }

    /// As a standard input: a copy for this one command. Only files can be used again.
    pub(super) fn try_clone(&self) -> io::Result<Kind> {
        match self {
            Kind::Null => Ok(Kind::Null),
            Kind::Piped => Ok(Kind::Piped),
            Kind::Inherit => Ok(Kind::Inherit),
            Kind::File(file) => Ok(Kind::File(file.try_clone()?)),
            Kind::Stdin(_) | Kind::Stdout(_) | Kind::Stderr(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "another command's stream can be used for one command only",
            )),
        }
    }
}

/// Where standard input comes from, made ready before the command starts so that failing is free.
pub(super) enum Feed {
    Nothing,
    Ours,
    From(Box<dyn Read + Send>, Option<io::PipeWriter>),
}

impl Feed {
    pub(super) fn new(kind: Kind) -> io::Result<Self> {
        let of =
            |(input, waker): (InterruptibleInput, io::PipeWriter)| Feed::From(Box::new(input), Some(waker));
        Ok(match kind {
            Kind::Null => Feed::Nothing,
            Kind::Piped => Feed::Ours,
            Kind::Inherit => of(InterruptibleInput::stdin()?),
            Kind::File(file) => of(InterruptibleInput::new(file)?),
            Kind::Stdout(stdout) => Feed::From(Box::new(stdout), None),
            Kind::Stderr(stderr) => Feed::From(Box::new(stderr), None),
            Kind::Stdin(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a command's standard input cannot be another's",
                ));
            }
        })
    }

    /// The caller's end, if the stream is the caller's.
    pub(super) fn start(self, stream: &Stream) -> io::Result<Option<ChildStdin>> {
        let (mut source, waker) = match self {
            Feed::Nothing => return Ok(None),
            Feed::Ours => return Ok(Some(ChildStdin::new(stream.clone()))),
            Feed::From(source, waker) => (source, waker),
        };
        if let Some(waker) = waker {
            stream.wake_when_input_ends(waker);
        }
        let stream = stream.clone();
        thread::Builder::new().name("cc-stdin".into()).spawn(move || {
            let mut bytes = vec![0; MAX_DATA];
            'reading: while let Ok(n @ 1..) = source.read(&mut bytes) {
                let mut rest = &bytes[..n];
                while !rest.is_empty() {
                    match stream.write(rest, true) {
                        Ok(n) => rest = &rest[n..],
                        Err(_) => break 'reading,
                    }
                }
            }
            stream.end_input();
        })?;
        Ok(None)
    }
}

/// Where standard output or error goes.
pub(super) enum Drain {
    Nothing,
    Ours,
    To(Box<dyn io::Write + Send>),
}

impl Drain {
    pub(super) fn new(kind: Kind, output: Output) -> io::Result<Self> {
        Ok(match (kind, output) {
            (Kind::Null, _) => Drain::Nothing,
            (Kind::Piped, _) => Drain::Ours,
            (Kind::Inherit, Output::Stdout) => Drain::To(Box::new(io::stdout())),
            (Kind::Inherit, Output::Stderr) => Drain::To(Box::new(io::stderr())),
            (Kind::File(file), _) => Drain::To(Box::new(file)),
            (Kind::Stdin(stdin), _) => Drain::To(Box::new(stdin)),
            (Kind::Stdout(_) | Kind::Stderr(_), _) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a command's output cannot be another's",
                ));
            }
        })
    }

    /// Whether the stream is the caller's.
    pub(super) fn start(self, stream: &Stream, output: Output) -> io::Result<bool> {
        let sink = match self {
            Drain::Nothing => return Ok(false),
            Drain::Ours => return Ok(true),
            Drain::To(sink) => sink,
        };
        stream.expect_copy(output);
        let name = if output == Output::Stdout { "cc-stdout" } else { "cc-stderr" };
        let stream = stream.clone();
        thread::Builder::new().name(name.into()).spawn(move || stream.copy(output, sink))?;
        Ok(false)
    }
}
