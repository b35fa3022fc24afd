//! A program that tests the machine it runs on, on every backend of this host, and images that cannot be.

use std::sync::Mutex;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::*;
use crate::chipset::wakeup::MAILBOX;
use crate::hypervisor::{CpuModel, VmOptions};
use crate::machine::{Backend, Ending};

const CODE: u64 = 0x10_0000;
/// Interrupts of each vector, 4 bytes each.
const COUNTS: u64 = 0x3_0000;
const FLAGS: u64 = 0x3_2000;
const IDT: u64 = 0x4_0000;
const IDT_POINTER: u64 = 0x4_1000;
const GDT_POINTER: u64 = 0x4_1010;
/// 16 bytes of code for each vector.
const STUBS: u64 = 0x4_2000;
const SECOND_CPU: u64 = 0x5_0000;
const DEVICE: u64 = 0xd800_0000;
const PORT: u16 = 0x500;

const TIMER: u32 = 0x40;
const SELF: u32 = 0x41;
const CROSS: u32 = 0x42;
const PIT: u32 = 0x43;

/// What the self-test writes when it is content.
const CONTENT: &str = "paging interrupts timers IPIs MMIO\nHello, World\n";

fn platforms() -> Vec<Platform> {
    #[allow(unused_mut)]
    let mut platforms = vec![Platform::default()];
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    match crate::hypervisor::kvm::System::open() {
        Ok(_) => {
            let options = VmOptions { model: CpuModel::Minimal, ..VmOptions::default() };
            platforms.push(Platform { backend: Backend::Kvm, options });
        }
        Err(e) => println!("NOT RUN on KVM: {e}"),
    }
    println!("backends: {:?}", platforms.iter().map(|p| p.backend.name()).collect::<Vec<_>>());
    platforms
}

fn assembled(at: u64, program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    program(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// Gates of all vectors, and the pointers to them and to the first processor's GDT.
fn idt() -> [(u64, Vec<u8>); 3] {
    let gates = (0..256_u64).flat_map(|vector| {
        let code = STUBS + 16 * vector;
        let low = code & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (code >> 16 & 0xffff) << 48;
        [low, code >> 32].map(u64::to_le_bytes).into_iter().flatten()
    });
    let pointer = [0xff, 0x0f].into_iter().chain(IDT.to_le_bytes()).collect();
    let gdt = [0x37, 0].into_iter().chain(0x7000_u64.to_le_bytes()).collect();
    [(IDT, gates.collect()), (IDT_POINTER, pointer), (GDT_POINTER, gdt)]
}

/// Each vector counts itself; a page fault goes on at RBX, the others return, interrupts with an EOI.
fn stubs() -> Vec<(u64, Vec<u8>)> {
    let mut code: Vec<(u64, Vec<u8>)> = Vec::new();
    let (fault, interrupt) = (STUBS + 0x1000, STUBS + 0x1040);
    for vector in 0..256_u64 {
        let at = STUBS + 16 * vector;
        let stub = assembled(at, |a| {
            a.inc(dword_ptr(COUNTS + 4 * vector))?;
            match vector {
                14 => a.jmp(fault),
                0..32 => a.iretq(),
                _ => a.jmp(interrupt),
            }
        });
        assert!(stub.len() <= 16);
        code.push((at, stub));
    }
    let after_fault = assembled(fault, |a| {
        // The error code, then another way on.
        a.add(rsp, 8)?;
        a.mov(qword_ptr(rsp), rbx)?;
        a.iretq()
    });
    let end_of_interrupt = assembled(interrupt, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        write_msr(a, 0x80b, 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    });
    code.extend([(fault, after_fault), (interrupt, end_of_interrupt)]);
    code
}

fn write_msr(a: &mut CodeAssembler, msr: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

/// Turns the local APIC on, in x2APIC mode, and loads the IDT.
fn interrupts_on(a: &mut CodeAssembler, boot: bool) -> Result<(), IcedError> {
    a.lidt(ptr(IDT_POINTER))?;
    write_msr(a, 0x1b, 0xfee0_0c00 | if boot { 0x100 } else { 0 })?;
    write_msr(a, 0x80f, 0x1ff)
}

fn say(a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    a.mov(edx, 0x3f8)?;
    for byte in text.bytes() {
        a.mov(eax, u32::from(byte))?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// Waits, with interrupts on, until the word at `at` is not zero.
fn wait_for(a: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.cli()?;
    a.cmp(dword_ptr(at), 0)?;
    a.jne(done)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(again)?;
    a.set_label(&mut done)?;
    a.sti()
}

/// Says that something is wrong and ends the machine, unless the flags say "equal".
fn demand_equal(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut good = a.create_label();
    a.je(good)?;
    say(a, "WRONG\n")?;
    power_off(a)?;
    a.set_label(&mut good)?;
    a.nop()
}

fn power_off(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, 0xcf9)?;
    a.mov(eax, 6)?;
    a.out(dx, al)?;
    a.hlt()
}

fn self_test(a: &mut CodeAssembler) -> Result<(), IcedError> {
    interrupts_on(a, true)?;

    // Paging: a page that is not there faults, is there once it is mapped, and leads where it should.
    a.mov(qword_ptr(0x1000 + 8), 0)?;
    let mut mapped = a.create_label();
    a.lea(rbx, ptr(mapped))?;
    a.mov(rsi, 0x80_0000_0000_u64)?;
    a.mov(eax, dword_ptr(rsi))?;
    a.ud2()?;
    a.set_label(&mut mapped)?;
    a.cmp(dword_ptr(COUNTS + 4 * 14), 1)?;
    demand_equal(a)?;
    a.mov(rax, cr2)?;
    a.cmp(rax, rsi)?;
    demand_equal(a)?;
    a.mov(rax, qword_ptr(0x1000))?;
    a.mov(qword_ptr(0x1000 + 8), rax)?;
    a.invlpg(ptr(rsi))?;
    a.mov(dword_ptr(FLAGS), 0x1234_5678)?;
    a.cmp(dword_ptr(rsi + FLAGS as i32), 0x1234_5678)?;
    demand_equal(a)?;
    say(a, "paging ")?;

    // Exceptions return behind a trap; software interrupts too.
    a.int3()?;
    a.int(0x80)?;
    a.cmp(dword_ptr(COUNTS + 4 * 3), 1)?;
    demand_equal(a)?;
    a.cmp(dword_ptr(COUNTS + 4 * 0x80), 1)?;
    demand_equal(a)?;
    say(a, "interrupts ")?;

    // The local APIC's timer, once, after a millisecond.
    write_msr(a, 0x83e, 0xb)?;
    write_msr(a, 0x832, TIMER.into())?;
    write_msr(a, 0x838, 1_000_000)?;
    wait_for(a, COUNTS + 4 * u64::from(TIMER))?;
    // The PIT's channel 0, through the IOAPIC's pin 2.
    a.mov(rdi, 0xfec0_0000_u64)?;
    for (register, value) in [(0x15, 0_u32), (0x14, PIT)] {
        a.mov(dword_ptr(rdi), register)?;
        a.mov(dword_ptr(rdi + 0x10), value)?;
    }
    a.mov(al, 0x30)?;
    a.out(0x43, al)?;
    a.mov(al, 0xff)?;
    a.out(0x40, al)?;
    a.mov(al, 4)?;
    a.out(0x40, al)?;
    wait_for(a, COUNTS + 4 * u64::from(PIT))?;
    say(a, "timers ")?;

    // To itself, and to the second processor, which answers.
    write_msr(a, 0x83f, SELF.into())?;
    wait_for(a, COUNTS + 4 * u64::from(SELF))?;
    a.mov(rdi, MAILBOX)?;
    a.mov(dword_ptr(rdi + 4), 1)?;
    a.mov(rax, SECOND_CPU)?;
    a.mov(qword_ptr(rdi + 8), rax)?;
    a.mov(word_ptr(rdi), 1)?;
    let mut there = a.create_label();
    a.set_label(&mut there)?;
    a.pause()?;
    a.cmp(dword_ptr(FLAGS + 4), 0)?;
    a.je(there)?;
    write_msr(a, 0x830, 1 << 32 | u64::from(CROSS))?;
    let mut answered = a.create_label();
    a.set_label(&mut answered)?;
    a.pause()?;
    a.cmp(dword_ptr(FLAGS + 8), 0)?;
    a.je(answered)?;
    say(a, "IPIs ")?;

    // A device that the host's program is.
    a.mov(rdi, DEVICE)?;
    a.mov(dword_ptr(rdi + 4), 21)?;
    a.cmp(dword_ptr(rdi + 4), 42)?;
    demand_equal(a)?;
    a.mov(edx, u32::from(PORT))?;
    a.mov(al, 4)?;
    a.out(dx, al)?;
    a.in_(al, dx)?;
    a.cmp(al, 8)?;
    demand_equal(a)?;
    say(a, "MMIO\nHello, World\n")?;
    power_off(a)
}

/// The second processor: says that it is there, waits for the interrupt, says so.
fn second(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(esp, 0x6_0000)?;
    // The segments of the first processor.
    a.lgdt(ptr(GDT_POINTER))?;
    let mut there = a.create_label();
    for word in [0x10, 0x6_0000, 2, 8] {
        a.push(word)?;
    }
    a.lea(rax, ptr(there))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut there)?;
    interrupts_on(a, false)?;
    a.mov(dword_ptr(FLAGS + 4), 1)?;
    wait_for(a, COUNTS + 4 * u64::from(CROSS))?;
    a.mov(dword_ptr(FLAGS + 8), 1)?;
    let mut rest = a.create_label();
    a.set_label(&mut rest)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(rest)
}

/// Answers twice what was written last.
#[derive(Default)]
struct Doubler(Mutex<Vec<u8>>);

impl BusDevice for Doubler {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.0.lock().unwrap().iter()) {
            *to = from * 2;
        }
    }
    fn write(&self, _offset: u64, data: &[u8]) {
        *self.0.lock().unwrap() = data.to_vec();
    }
}

fn tester() -> BareMetal {
    let machine = BareMetal::new(Image::flat(CODE, assembled(CODE, self_test)))
        .cpus(2)
        .timeout(Duration::from_secs(120))
        .data(SECOND_CPU, assembled(SECOND_CPU, second))
        .mmio(DEVICE, 0x1000, Arc::new(Doubler::default()))
        .ports(PORT..=PORT + 3, Arc::new(Doubler::default()));
    idt().into_iter().chain(stubs()).fold(machine, |machine, (at, bytes)| machine.data(at, bytes))
}

#[test]
fn the_self_test_says_hello_on_every_backend() {
    for platform in platforms() {
        let machine = tester().platform(platform).start().unwrap();
        let ending = machine.wait(None).unwrap();
        println!("{}: {ending}, {} instructions refused", platform.backend, machine.opinions());
        assert_eq!(machine.console().tail(), CONTENT, "on {}", platform.backend);
        assert!(matches!(ending, Ending::Reset), "{ending:?}");
    }
}

/// What guards the self-test: a machine that lacks something fails it.
#[test]
fn the_self_test_notices_what_is_wrong() {
    for platform in platforms() {
        // Another device than the one it wants.
        struct Other;
        impl BusDevice for Other {
            fn read(&self, _offset: u64, data: &mut [u8]) {
                data.fill(7);
            }
            fn write(&self, _offset: u64, _data: &[u8]) {}
        }
        let mut machine = tester();
        machine.mmio = vec![(DEVICE, 0x1000, Arc::new(Other))];
        let machine = machine.platform(platform).start().unwrap();
        machine.wait(None).unwrap();
        assert!(machine.console().tail().ends_with("IPIs WRONG\n"), "{}", machine.console().tail());
    }
}

#[test]
fn what_a_program_does_wrong_ends_its_machine() {
    for platform in platforms() {
        // An exception without an IDT.
        let machine = BareMetal::new(Image::flat(CODE, [0x0f, 0x0b])).platform(platform).start().unwrap();
        let ending = machine.wait(Some(Duration::from_secs(60))).unwrap();
        assert!(matches!(ending, Ending::Crashed { .. }), "{ending:?}");

        // A loop without an end, and one of exits.
        for code in
            [&[0xeb, 0xfe][..], &[0xe6, 0x80, 0xeb, 0xfc], &[0xa0, 0, 0, 0, 0xe0, 0, 0, 0, 0, 0xeb, 0xf5]]
        {
            let machine = BareMetal::new(Image::flat(CODE, code))
                .platform(platform)
                .timeout(Duration::from_millis(200))
                .start()
                .unwrap();
            let ending = machine.wait(Some(Duration::from_secs(60))).unwrap();
            assert!(matches!(ending, Ending::Timeout), "{ending:?}");
        }
    }
}

#[test]
fn images_that_cannot_be_are_refused() {
    let start = |machine: BareMetal| machine.start().map(drop).unwrap_err().to_string();
    let hlt = || BareMetal::new(Image::flat(CODE, [0xf4]));
    assert!(start(BareMetal::new(Image::flat(0x1000, [0xf4]))).contains("tables"));
    assert!(start(BareMetal::new(Image::flat(16 << 20, [0xf4]))).contains("do not fit"));
    assert!(start(hlt().data(u64::MAX, [1])).contains("do not fit"));
    assert!(start(hlt().cpus(0)).contains("1 to"));
    assert!(start(hlt().cpus(1000)).contains("1 to"));
    assert!(start(hlt().memory(4096)).contains("2 MiB"));
    start(hlt().memory(16 << 20 | 1));
    start(BareMetal::new(Image::elf(*b"no ELF at all")));
    let over_the_uart = hlt().ports(0x3f8..=0x3f8, Arc::new(Doubler::default()));
    assert!(matches!(over_the_uart.start(), Err(MachineError::Bus(_))));
}

/// Counts the interrupts of a periodic timer, and its own turns between them.
fn counter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    interrupts_on(a, true)?;
    write_msr(a, 0x83e, 0xb)?;
    write_msr(a, 0x832, u64::from(TIMER) | 1 << 17)?;
    write_msr(a, 0x838, 2_000_000)?;
    a.mov(r12, 0x0123_4567_89ab_cdef_u64)?;
    a.movq(xmm7, r12)?;
    a.sti()?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.hlt()?;
    a.inc(dword_ptr(FLAGS))?;
    a.movq(qword_ptr(FLAGS + 8), xmm7)?;
    a.jmp(again)
}

/// Goes on from a snapshot on `platform`.
fn go_on((state, ram): &(Vec<u8>, crate::memory::SavedRam), platform: Platform) -> Machine {
    let restored = crate::machine::snapshot::reopen(state, ram).unwrap();
    let (console, power) = (Console::new(), PowerSwitch::default());
    let board = Board::new(BoardConfig {
        ram: restored.ram.clone(),
        cpus: restored.cpus(),
        guest_cid: GUEST_CID,
        serial: console.writer(None),
        console: Box::new(std::io::sink()),
        file_systems: Vec::new(),
        power: power.callback(),
    })
    .unwrap();
    let vcpus = restored.vcpus().to_vec();
    let platform = platform.with_model(restored.model());
    let lifetime = Some(Duration::from_secs(120));
    Machine::start(board, platform, &vcpus, console, &power, lifetime, |board| {
        restored.apply(board).map_err(|e| std::io::Error::other(e.to_string()).into())
    })
    .unwrap()
}

/// A program, its memory, its timer and the time go from one backend to the next and back, five times over, and from
/// each to itself.
#[test]
fn a_program_moves_between_backends() {
    let model = CpuModel::Minimal;
    let platforms: Vec<Platform> = platforms().into_iter().map(|p| p.with_model(model)).collect();
    let word = |machine: &Machine, at: u64| -> u64 {
        u64::from(machine.board().ram().memory().read_obj::<u32>(GuestAddress(at)).unwrap())
    };
    let (timer, turns) = (COUNTS + 4 * u64::from(TIMER), FLAGS);
    let program = BareMetal::new(Image::flat(CODE, assembled(CODE, counter))).platform(platforms[0]);
    let program =
        idt().into_iter().chain(stubs()).fold(program, |machine, (at, bytes)| machine.data(at, bytes));
    let mut machine = program.timeout(Duration::from_secs(120)).start().unwrap();
    let advance = |machine: &Machine| {
        let (from, deadline) = (word(machine, timer), std::time::Instant::now() + Duration::from_secs(60));
        while word(machine, timer) < from + 5 {
            assert!(machine.ending().is_none(), "{:?}", machine.ending());
            assert!(std::time::Instant::now() < deadline, "no interrupts come");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    advance(&machine);
    let mut time = 0;
    for round in 0..10 {
        let frozen = machine.freeze().unwrap();
        let (counted, turned) = (word(&machine, timer), word(&machine, turns));
        let snapshot = crate::machine::snapshot::copy(&machine, &frozen).unwrap();
        let state = frozen.vcpus().unwrap()[0].as_ref().unwrap().state.clone();
        assert_eq!(state.gpr[12], 0x0123_4567_89ab_cdef);
        assert_eq!(state.fpu.xmm[7], 0x0123_4567_89ab_cdef);
        let now = machine.board().clock.now();
        assert!(now > time, "time went back: {now} after {time}");
        time = now;
        drop(frozen);
        drop(machine);
        // To the other, to the same, and so on.
        let next = platforms[round / 2 % platforms.len()];
        machine = go_on(&snapshot, next);
        assert!(word(&machine, timer) >= counted && word(&machine, turns) >= turned);
        advance(&machine);
        assert!(word(&machine, turns) > turned);
        println!("on {}: {counted} interrupts, {turned} turns, {now} ns", next.backend);
    }
}
