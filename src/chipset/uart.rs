//! A 16550 serial port (vm-superio's registers) between the guest and the host.
//!
//! Output goes through a bounded queue to a thread that writes it to the caller's writer, so a slow
//! or blocked writer never holds up a vCPU. When the queue is full, what the guest writes is dropped
//! and counted. A writer that fails gets no more. Input waits in a bounded queue until the guest
//! reads it.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::bus::{BusDevice, BusError, SystemBus};
use super::irq::IrqLine;

/// First port of COM1, eight ports long.
pub const COM1_PORT: u64 = 0x3f8;
/// GSI of COM1.
pub const COM1_GSI: u32 = 4;

/// Most bytes of output that wait for the writer.
pub const OUTPUT_CAPACITY: usize = 1 << 20;
/// Most bytes of input that wait for the guest.
pub const INPUT_CAPACITY: usize = 64 << 10;

/// How long output is gathered before it is written: a wake-up a byte would cost more than the byte.
const GATHER: Duration = Duration::from_micros(500);
/// Output beyond this is not gathered for.
const GATHER_BYTES: usize = 4096;
/// How long `drop` waits for a writer that is stuck before it leaves the thread behind.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// Registers of the port and what waits to be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UartState {
    /// Low byte of the baud divisor.
    pub baud_divisor_low: u8,
    /// High byte of the baud divisor.
    pub baud_divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// The receive FIFO, at most 64 bytes.
    pub fifo: Vec<u8>,
    /// Input that follows it, at most [`INPUT_CAPACITY`] bytes.
    pub input: Vec<u8>,
}

/// The saved state has more bytes in the receive FIFO than the port has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("serial port state with an overlong receive FIFO")]
pub struct BadUartState;

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// The thread is writing what it took.
    writing: bool,
    stop: bool,
    /// The thread has ended, or never was.
    ended: bool,
    dropped: u64,
}

#[derive(Default)]
struct Output {
    queue: Mutex<Queue>,
    /// For the thread: there is something to do. For others: `writing` or `ended` changed.
    changed: Condvar,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait_until(&self, timeout: Duration, done: impl Fn(&Queue) -> bool) -> bool {
        let until = Instant::now() + timeout;
        let mut queue = self.lock();
        while !done(&queue) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = match self.changed.wait_timeout(queue, left) {
                Ok((guard, _)) => guard,
                Err(e) => e.into_inner().0,
            };
        }
        true
    }

    fn run(&self, mut writer: Box<dyn Write + Send>) {
        /// Says that the thread ended, also when the writer panicked.
        struct Ended<'a>(&'a Output);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                let mut queue = self.0.lock();
                queue.ended = true;
                queue.writing = false;
                queue.bytes = Vec::new();
                self.0.changed.notify_all();
            }
        }
        let _ended = Ended(self);
        let mut batch = Vec::new();
        loop {
            let mut queue = self.lock();
            queue.writing = false;
            self.changed.notify_all();
            while queue.bytes.is_empty() {
                if queue.stop {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(|e| e.into_inner());
            }
            queue.writing = true;
            if queue.bytes.len() < GATHER_BYTES && !queue.stop {
                drop(queue);
                std::thread::sleep(GATHER);
                queue = self.lock();
            }
            std::mem::swap(&mut queue.bytes, &mut batch);
            drop(queue);
            if writer.write_all(&batch).and_then(|()| writer.flush()).is_err() {
                return;
            }
            batch.clear();
            batch.shrink_to(GATHER_BYTES);
        }
    }
}

/// The guest's side of the output queue, one byte at a time.
#[derive(Clone)]
struct OutputEnd(Arc<Output>);

impl Write for OutputEnd {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let mut queue = self.0.lock();
        let room = if queue.ended { 0 } else { OUTPUT_CAPACITY.saturating_sub(queue.bytes.len()) };
        let taken = data.len().min(room);
        queue.dropped += (data.len() - taken) as u64;
        let was_empty = queue.bytes.is_empty();
        queue.bytes.extend_from_slice(&data[..taken]);
        drop(queue);
        if was_empty && taken > 0 {
            self.0.changed.notify_all();
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The port's interrupt, an edge for each cause.
struct Edge(IrqLine);

impl Trigger for Edge {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse();
        Ok(())
    }
}

struct Port {
    serial: Serial<Edge, NoEvents, OutputEnd>,
    input: VecDeque<u8>,
}

impl Port {
    /// Moves input on to where the guest sees it.
    fn feed(&mut self) {
        while !self.input.is_empty() && self.serial.fifo_capacity() > 0 {
            // None is taken in loopback mode.
            match self.serial.enqueue_raw_bytes(self.input.as_slices().0) {
                Ok(taken) if taken > 0 => drop(self.input.drain(..taken)),
                _ => return,
            }
        }
    }
}

/// A serial port.
pub struct Uart {
    port: Mutex<Port>,
    irq: IrqLine,
    output: Arc<Output>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Uart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Uart").field(&self.state()).finish()
    }
}

impl Uart {
    /// A port that signals on `irq` and sends the guest's output to `writer`, which is called on a
    /// thread of its own. Fails when the host has no thread to give.
    pub fn new(irq: IrqLine, writer: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let output = Arc::new(Output::default());
        let shared = output.clone();
        let thread =
            std::thread::Builder::new().name("cc-serial".into()).spawn(move || shared.run(writer))?;
        let serial = Serial::new(Edge(irq.clone()), OutputEnd(output.clone()));
        let port = Mutex::new(Port { serial, input: VecDeque::new() });
        Ok(Self { port, irq, output, thread: Some(thread) })
    }

    /// Puts the port at `base` on the bus.
    pub fn attach(self: &Arc<Self>, bus: &SystemBus, base: u64) -> Result<(), BusError> {
        bus.ports.insert(base, 8, self.clone())
    }

    /// Gives the guest input. Returns how many bytes were taken; the rest found the queue full.
    pub fn input(&self, data: &[u8]) -> usize {
        let mut port = self.lock();
        let taken = data.len().min(INPUT_CAPACITY.saturating_sub(port.input.len()));
        port.input.extend(&data[..taken]);
        port.feed();
        taken
    }

    /// Waits until all output so far has been written, at most for `timeout`. Returns whether it
    /// has.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.output.wait_until(timeout, |queue| queue.bytes.is_empty() && !queue.writing)
    }

    /// Bytes of output lost because the writer was too slow or had failed.
    pub fn dropped(&self) -> u64 {
        self.output.lock().dropped
    }

    /// A copy of the registers and the input. Output under way is not part of it.
    pub fn state(&self) -> UartState {
        let port = self.lock();
        let serial = port.serial.state();
        UartState {
            baud_divisor_low: serial.baud_divisor_low,
            baud_divisor_high: serial.baud_divisor_high,
            interrupt_enable: serial.interrupt_enable,
            interrupt_identification: serial.interrupt_identification,
            line_control: serial.line_control,
            line_status: serial.line_status,
            modem_control: serial.modem_control,
            modem_status: serial.modem_status,
            scratch: serial.scratch,
            fifo: serial.in_buffer,
            input: port.input.iter().copied().collect(),
        }
    }

    /// Replaces the registers and the input.
    pub fn set_state(&self, state: UartState) -> Result<(), BadUartState> {
        let serial = SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo,
        };
        let mut port = self.lock();
        port.serial =
            Serial::from_state(&serial, Edge(self.irq.clone()), NoEvents, OutputEnd(self.output.clone()))
                .map_err(|_| BadUartState)?;
        port.input = state.input.into_iter().take(INPUT_CAPACITY).collect();
        Ok(())
    }

    /// Back to power-on, without input.
    pub fn reset(&self) {
        let mut port = self.lock();
        port.serial = Serial::new(Edge(self.irq.clone()), OutputEnd(self.output.clone()));
        port.input.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut port = self.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = port.serial.read(at as u8);
        }
        port.feed();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut port = self.lock();
        for (at, byte) in (offset..).zip(data) {
            // Neither the queue nor the interrupt line can fail.
            let _ = port.serial.write(at as u8, *byte);
        }
        port.feed();
    }
}

impl Drop for Uart {
    fn drop(&mut self) {
        self.output.lock().stop = true;
        self.output.changed.notify_all();
        let Some(thread) = self.thread.take() else { return };
        if thread.thread().id() != std::thread::current().id()
            && self.output.wait_until(DROP_PATIENCE, |queue| queue.ended)
        {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::irq::IrqSink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Edges(AtomicUsize);

    impl IrqSink for Edges {
        fn set_irq(&self, gsi: u32, level: bool) {
            assert_eq!(gsi, COM1_GSI);
            self.0.fetch_add(level.into(), Ordering::SeqCst);
        }
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn uart(writer: impl Write + Send + 'static) -> (Uart, Arc<Edges>) {
        let edges = Arc::new(Edges::default());
        (Uart::new(IrqLine::new(edges.clone(), COM1_GSI), Box::new(writer)).unwrap(), edges)
    }

    fn inb(uart: &Uart, offset: u64) -> u8 {
        let mut data = [0];
        uart.read(offset, &mut data);
        data[0]
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn output_arrives_whole_and_in_order() {
        let buffer = Buffer::default();
        let (uart, _) = uart(buffer.clone());
        let text: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        for byte in &text {
            assert_eq!(inb(&uart, 5) & 0x20, 0x20);
            uart.write(0, &[*byte]);
        }
        assert!(uart.drain(PATIENCE));
        assert_eq!(*buffer.0.lock().unwrap(), text);
        uart.write(0, b"x");
        drop(uart);
        assert_eq!(buffer.0.lock().unwrap().last(), Some(&b'x'), "drop writes what is left");
    }

    #[test]
    fn input_longer_than_the_fifo_follows_as_the_guest_reads() {
        let (uart, edges) = uart(std::io::sink());
        uart.write(1, &[1]);
        let text: Vec<u8> = (0..200).collect();
        assert_eq!(uart.input(&text), 200);
        assert!(edges.0.load(Ordering::SeqCst) >= 1);
        assert_eq!(inb(&uart, 2) & 0x0f, 4);
        let mut got = Vec::new();
        while inb(&uart, 5) & 1 != 0 {
            got.push(inb(&uart, 0));
        }
        assert_eq!(got, text);
        let huge = vec![0; INPUT_CAPACITY * 2];
        assert!(uart.input(&huge) <= INPUT_CAPACITY);
        assert_eq!(uart.input(&huge), 64, "what the FIFO took made room once");
        assert_eq!(uart.input(&huge), 0);
    }

    #[test]
    fn a_blocked_writer_neither_stops_the_guest_nor_grows_memory() {
        struct Blocked(std::sync::mpsc::Receiver<()>);
        impl Write for Blocked {
            fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
                // Until the other end goes.
                let _ = self.0.recv();
                Ok(data.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let (uart, _) = uart(Blocked(blocked));
        for _ in 0..3 * OUTPUT_CAPACITY {
            uart.write(0, b"a");
        }
        assert!(uart.dropped() >= OUTPUT_CAPACITY as u64);
        assert!(uart.output.lock().bytes.len() <= OUTPUT_CAPACITY);
        assert!(!uart.drain(Duration::from_millis(1)));
        drop(release);
        assert!(uart.drain(PATIENCE));
    }

    #[test]
    fn a_writer_that_fails_or_panics_is_left_alone() {
        struct Bad(bool);
        impl Write for Bad {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                assert!(!self.0, "the writer's own panic");
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        for panics in [false, true] {
            let (uart, _) = uart(Bad(panics));
            uart.write(0, b"a");
            assert!(uart.output.wait_until(PATIENCE, |queue| queue.ended));
            uart.write(0, b"b");
            assert_eq!(uart.dropped(), 1);
            assert!(uart.drain(PATIENCE));
        }
    }

    #[test]
    fn state_moves_and_a_bad_one_is_refused() {
        let (uart1, _) = uart(std::io::sink());
        uart1.write(3, &[0x80]);
        uart1.write(0, &[0x0c, 0x01]);
        uart1.write(3, &[0x03]);
        uart1.write(7, &[0x5a]);
        uart1.input(&[7; 100]);
        let state = uart1.state();
        assert_eq!((state.baud_divisor_low, state.baud_divisor_high), (0x0c, 1));
        assert_eq!((state.fifo.len(), state.input.len()), (64, 36));
        let (uart2, _) = uart(std::io::sink());
        uart2.set_state(state.clone()).unwrap();
        assert_eq!(uart2.state(), state);
        let bad = UartState { fifo: vec![0; 65], ..state.clone() };
        assert_eq!(uart2.set_state(bad), Err(BadUartState));
        assert_eq!(uart2.state(), state);
        uart2.reset();
        assert_eq!(inb(&uart2, 5), 0x60);
    }
}
