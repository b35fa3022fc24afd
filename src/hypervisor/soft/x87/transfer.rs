//! Loads, stores, constants, exchanges and conditional moves.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::super::cpu::Cpu;
use super::super::fp::{Env, F80, Rounding, f80_convert, flag};
use super::super::op::{Exec, Handler, Op};
use super::register;
use super::stack::{Frame, rotate};

/// [`Op::extra`] of stores: ST(0) is popped.
const POP: u16 = 1;
/// [`Op::extra`] of integer stores: rounded toward zero (FISTTP).
const TRUNCATE: u16 = 2;

/// Pushes what was loaded. A denormal is loaded even where DE is unmasked; an unmasked invalid
/// operand is not.
fn push(mut f: Frame, load: impl FnOnce(&mut Env) -> F80) -> Exec {
    if f.full() {
        if f.overflow() {
            f.push(F80::INDEFINITE);
        }
        return f.done();
    }
    let v = load(&mut f.env);
    if f.env.flags & f.env.unmasked & flag::IE == 0 {
        f.push(v);
    }
    f.done()
}

fn fld_m32(cpu: &mut Cpu, op: &Op) -> Exec {
    let f = Frame::new(cpu, op)?;
    let v = f.cpu.load::<u32>(op)?;
    push(f, |env| f80_convert::load(env, v))
}

fn fld_m64(cpu: &mut Cpu, op: &Op) -> Exec {
    let f = Frame::new(cpu, op)?;
    let v = f.cpu.load::<u64>(op)?;
    push(f, |env| f80_convert::load(env, v))
}

fn load80(f: &mut Frame, op: &Op) -> Result<[u8; 10], super::super::op::Stop> {
    let mut bytes = [0; 10];
    let at = f.cpu.ea(op);
    let low = f.cpu.read::<u64>(at)?;
    let high = f.cpu.read::<u16>(at.wrapping_add(8))?;
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    Ok(bytes)
}

fn from_bytes(bytes: [u8; 10]) -> F80 {
    let [a, b, c, d, e, f, g, h, i, j] = bytes;
    F80 { sig: u64::from_le_bytes([a, b, c, d, e, f, g, h]), se: u16::from_le_bytes([i, j]) }
}

fn to_bytes(v: F80) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&v.sig.to_le_bytes());
    bytes[8..].copy_from_slice(&v.se.to_le_bytes());
    bytes
}

fn fld_m80(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let bytes = load80(&mut f, op)?;
    push(f, |_| from_bytes(bytes))
}

fn fbld(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let bytes = load80(&mut f, op)?;
    push(f, |_| f80_convert::from_bcd(bytes))
}

fn fild_m16(cpu: &mut Cpu, op: &Op) -> Exec {
    let f = Frame::new(cpu, op)?;
    let v = f.cpu.load::<u16>(op)? as i16;
    push(f, |_| f80_convert::from_i64(v.into()))
}

fn fild_m32(cpu: &mut Cpu, op: &Op) -> Exec {
    let f = Frame::new(cpu, op)?;
    let v = f.cpu.load::<u32>(op)? as i32;
    push(f, |_| f80_convert::from_i64(v.into()))
}

fn fild_m64(cpu: &mut Cpu, op: &Op) -> Exec {
    let f = Frame::new(cpu, op)?;
    let v = f.cpu.load::<u64>(op)? as i64;
    push(f, |_| f80_convert::from_i64(v))
}

fn fld_st(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let Some(v) = f.get(op.src) else {
        if f.underflow() {
            f.push(F80::INDEFINITE);
        }
        return f.done();
    };
    push(f, |_| v)
}

fn constant(cpu: &mut Cpu, op: &Op) -> Exec {
    let f = Frame::new(cpu, op)?;
    push(f, |env| f80_convert::constant(env.rounding, usize::from(op.extra)))
}

/// Converts ST(0) and stores it, unless an exception other than PE is unmasked; an empty register
/// counts as the indefinite.
fn store<const N: usize>(mut f: Frame, op: &Op, convert: impl Fn(&mut Env, F80) -> [u8; N]) -> Exec {
    let bytes = match f.get(0) {
        Some(v) => convert(&mut f.env, v),
        None => {
            f.underflow();
            convert(&mut Env::default(), F80::INDEFINITE)
        }
    };
    if f.env.flags & f.env.unmasked & !flag::PE == 0 {
        let at = f.cpu.ea(op);
        match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(b) => f.cpu.write(at, u64::from_le_bytes(b))?,
            Err(_) => match <[u8; 4]>::try_from(&bytes[..]) {
                Ok(b) => f.cpu.write(at, u32::from_le_bytes(b))?,
                Err(_) => {
                    f.cpu.check_alignment(at, if N == 10 { 8 } else { N as u64 })?;
                    f.cpu.write_bytes(at, &bytes)?;
                }
            },
        }
        if op.extra & POP != 0 {
            f.pop();
        }
    }
    f.done()
}

fn fst_m32(cpu: &mut Cpu, op: &Op) -> Exec {
    store(Frame::new(cpu, op)?, op, |env, v| f80_convert::store::<u32>(env, v).to_le_bytes())
}

fn fst_m64(cpu: &mut Cpu, op: &Op) -> Exec {
    store(Frame::new(cpu, op)?, op, |env, v| f80_convert::store::<u64>(env, v).to_le_bytes())
}

fn fstp_m80(cpu: &mut Cpu, op: &Op) -> Exec {
    store(Frame::new(cpu, op)?, op, |_, v| to_bytes(v))
}

fn fbstp(cpu: &mut Cpu, op: &Op) -> Exec {
    store(Frame::new(cpu, op)?, op, f80_convert::to_bcd)
}

fn integer(env: &mut Env, op: &Op, v: F80, bits: u32) -> i64 {
    let rounding = if op.extra & TRUNCATE != 0 { Rounding::Zero } else { env.rounding };
    f80_convert::to_signed(env, v, rounding, bits)
}

fn fist_m16(cpu: &mut Cpu, op: &Op) -> Exec {
    store(Frame::new(cpu, op)?, op, |env, v| (integer(env, op, v, 16) as u16).to_le_bytes())
}

fn fist_m32(cpu: &mut Cpu, op: &Op) -> Exec {
    store(Frame::new(cpu, op)?, op, |env, v| (integer(env, op, v, 32) as u32).to_le_bytes())
}

fn fist_m64(cpu: &mut Cpu, op: &Op) -> Exec {
    store(Frame::new(cpu, op)?, op, |env, v| integer(env, op, v, 64).to_le_bytes())
}

fn fst_st(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let v = match f.get(0) {
        Some(v) => v,
        None if f.underflow() => F80::INDEFINITE,
        None => return f.done(),
    };
    f.set(op.dst, v);
    if op.extra & POP != 0 {
        f.pop();
    }
    f.done()
}

/// FSTP without a stack check (D9 D8 to D9 DF): an empty register is just popped.
fn fstpnce(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    if let Some(v) = f.get(0) {
        f.set(op.dst, v);
    }
    f.pop();
    f.done()
}

fn fxch(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let (a, b) = (f.get(0), f.get(op.src));
    if (a.is_none() || b.is_none()) && !f.underflow() {
        return f.done();
    }
    f.set(0, b.unwrap_or(F80::INDEFINITE));
    f.set(op.src, a.unwrap_or(F80::INDEFINITE));
    f.done()
}

/// [`Op::extra`] is the condition: 0 below, 1 equal, 2 below or equal, 3 unordered; plus 4 for its
/// opposite.
fn fcmov(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.keep_c1 = true;
    let (Some(_), Some(v)) = (f.get(0), f.get(op.src)) else {
        if f.underflow() {
            f.set(0, F80::INDEFINITE);
        }
        return f.done();
    };
    let flags = f.cpu.flags;
    let met = match op.extra & 3 {
        0 => flags.cf(),
        1 => flags.zf(),
        2 => flags.cf() || flags.zf(),
        _ => flags.pf(),
    };
    if met != (op.extra & 4 != 0) {
        f.set(0, v);
    }
    f.done()
}

fn fnop(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.keep_c1 = true;
    f.done()
}

/// FINCSTP (1) and FDECSTP (7): [`Op::extra`] is what the top moves by.
fn turn(cpu: &mut Cpu, op: &Op) -> Exec {
    let f = Frame::new(cpu, op)?;
    rotate(&mut f.cpu.fpu, op.extra);
    f.done()
}

/// FFREE, and FFREEP with [`POP`].
fn ffree(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let n = super::stack::physical(&f.cpu.fpu, op.dst);
    f.cpu.fpu.tag &= !(1 << n);
    if op.extra & POP != 0 {
        f.pop();
    }
    f.done()
}

pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let memory = ins.op0_kind() == OpKind::Memory;
    let mut load_constant = |index| {
        op.extra = index;
        Some(constant as Handler)
    };
    match ins.mnemonic() {
        M::Fld1 => return load_constant(0),
        M::Fldl2t => return load_constant(1),
        M::Fldl2e => return load_constant(2),
        M::Fldpi => return load_constant(3),
        M::Fldlg2 => return load_constant(4),
        M::Fldln2 => return load_constant(5),
        M::Fldz => return load_constant(6),
        _ => {}
    }
    let condition = match ins.mnemonic() {
        M::Fcmovb => Some(0),
        M::Fcmove => Some(1),
        M::Fcmovbe => Some(2),
        M::Fcmovu => Some(3),
        M::Fcmovnb => Some(4),
        M::Fcmovne => Some(5),
        M::Fcmovnbe => Some(6),
        M::Fcmovnu => Some(7),
        _ => None,
    };
    if let Some(condition) = condition {
        op.extra = condition;
        op.src = register(ins, 1);
        return Some(fcmov);
    }
    op.extra = match ins.mnemonic() {
        M::Fstp | M::Fistp | M::Fbstp | M::Ffreep => POP,
        M::Fisttp => POP | TRUNCATE,
        M::Fincstp => 1,
        M::Fdecstp => 7,
        _ => 0,
    };
    Some(match (ins.mnemonic(), ins.memory_size()) {
        (M::Fld, MemorySize::Float32) if memory => fld_m32,
        (M::Fld, MemorySize::Float64) if memory => fld_m64,
        (M::Fld, MemorySize::Float80) if memory => fld_m80,
        (M::Fld, _) => {
            // The one operand is the source; the stack top is implied.
            op.src = register(ins, ins.op_count().saturating_sub(1));
            fld_st
        }
        (M::Fild, MemorySize::Int16) => fild_m16,
        (M::Fild, MemorySize::Int32) => fild_m32,
        (M::Fild, MemorySize::Int64) => fild_m64,
        (M::Fbld, _) => fbld,
        (M::Fst | M::Fstp, MemorySize::Float32) if memory => fst_m32,
        (M::Fst | M::Fstp, MemorySize::Float64) if memory => fst_m64,
        (M::Fstp, MemorySize::Float80) if memory => fstp_m80,
        (M::Fstpnce, _) => {
            op.dst = register(ins, 0);
            fstpnce
        }
        (M::Fst | M::Fstp, _) => {
            op.dst = register(ins, 0);
            fst_st
        }
        (M::Fist | M::Fistp | M::Fisttp, MemorySize::Int16) => fist_m16,
        (M::Fist | M::Fistp | M::Fisttp, MemorySize::Int32) => fist_m32,
        (M::Fist | M::Fistp | M::Fisttp, MemorySize::Int64) => fist_m64,
        (M::Fbstp, _) => fbstp,
        (M::Fxch, _) => {
            op.src = register(ins, 1);
            fxch
        }
        (M::Fnop, _) => fnop,
        (M::Fincstp | M::Fdecstp, _) => turn,
        (M::Ffree | M::Ffreep, _) => {
            op.dst = register(ins, 0);
            ffree
        }
        _ => return None,
    })
}
