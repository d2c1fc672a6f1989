//! Chat templates compiled with a check before every instruction that can make data grow or nest.
//!
//! minijinja's fuel counts instructions, which says little: thirty of them double a text to a gigabyte, and a list that is
//! nested in itself a few thousand times overflows the stack when it is dropped. So each instruction that names a value,
//! joins two, or writes one is preceded by a call of the functions that [`Budget`](super::chat_budget::Budget) adds.
//! Their names are no identifiers, so that no template can call or replace them.

use std::collections::BTreeMap;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind, Value};

/// Values that a name gets.
pub(super) const STORE: &str = "store";
/// Values that an attribute of a namespace gets.
pub(super) const KEEP: &str = "keep";
/// Operands of `+`, `~`, `*`, of comparisons and of `in`; these functions give them back.
pub(super) const ADD: &str = "+";
pub(super) const CONCAT: &str = "~";
pub(super) const MUL: &str = "*";
pub(super) const COMPARE: &str = "==";

/// Words within one pair of braces. Real templates have a hundred; each may nest minijinja's compiler one level deeper.
const MAX_TAG: usize = 1000;

/// Bytes of a template. Real ones have up to 30,000.
const MAX_SOURCE: usize = 1 << 18;

/// Bytes that constants in one tag may become when they are multiplied, which minijinja does when it compiles.
const MAX_FOLDED: u128 = 1 << 20;

/// A template ready to run.
pub(super) struct Program<'s> {
    pub(super) main: Instructions<'s>,
    pub(super) blocks: BTreeMap<&'s str, Instructions<'s>>,
}

impl<'s> Program<'s> {
    pub(super) fn compile(
        name: &'s str,
        source: &'s str,
        syntax: &SyntaxConfig,
    ) -> Result<Self, Error> {
        check_size(source, syntax)?;
        let tree = parse(source, name, syntax.clone())?;
        let mut generator = CodeGenerator::new(name, source);
        generator.compile_stmt(&tree);
        let (main, blocks) = generator.finish();
        let blocks = blocks.iter().map(|(name, block)| (*name, guard(block))).collect();
        Ok(Self { main: guard(&main), blocks })
    }
}

fn check_size(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let refuse = |problem: String| Err(Error::new(ErrorKind::SyntaxError, problem));
    if source.len() > MAX_SOURCE {
        return refuse(format!("it has {} bytes, more than {MAX_SOURCE}", source.len()));
    }
    let (mut words, mut multiplies, mut texts, mut numbers) = (0_usize, false, 0_u128, 1_u128);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        words += 1;
        match token {
            Token::VariableStart | Token::BlockStart => {
                (words, multiplies, texts, numbers) = (0, false, 0, 1)
            }
            Token::Str(text) => texts += text.len().max(1) as u128,
            Token::String(text) => texts += text.len().max(1) as u128,
            Token::BracketOpen => texts += 1,
            Token::Int(number) => numbers = numbers.saturating_mul(u128::from(number) + 1),
            Token::Int128(_) | Token::Float(_) | Token::Pow => numbers = u128::MAX,
            Token::Mul => multiplies = true,
            _ => {}
        }
        let line = span.start_line;
        if words > MAX_TAG {
            return refuse(format!("line {line}: a tag of more than {MAX_TAG} words"));
        }
        if multiplies && texts.saturating_mul(numbers) > MAX_FOLDED {
            return refuse(format!("line {line}: a text repeated too often"));
        }
    }
    Ok(())
}

/// The same instructions with their checks, all jumps moved accordingly.
fn guard<'s>(code: &Instructions<'s>) -> Instructions<'s> {
    let list: Vec<_> = (0..).map_while(|at| code.get(at)).collect();
    let mut starts = Vec::with_capacity(list.len() + 1);
    let mut next = 0;
    for instruction in &list {
        starts.push(next);
        next += guarded((*instruction).clone()).len() as u32;
    }
    starts.push(next);

    let mut result = Instructions::new(code.name(), code.source());
    for (at, instruction) in (0..).zip(list) {
        for mut instruction in guarded(instruction.clone()) {
            if let Some(target) = target(&mut instruction) {
                *target = starts[*target as usize];
            }
            match (code.get_span(at), code.get_line(at)) {
                (Some(span), _) => result.add_with_span(instruction, span),
                (None, Some(line)) => result.add_with_line(instruction, line as u16),
                (None, None) => result.add(instruction),
            };
        }
    }
    result
}

fn guarded(instruction: Instruction<'_>) -> Vec<Instruction<'_>> {
    // No cached filters: the number stands for "look it up".
    let filter = |name| Instruction::ApplyFilter(name, Some(1), u8::MAX);
    let operands = |name| [Instruction::CallFunction(name, Some(2)), Instruction::UnpackList(2)];
    let mut list = match &instruction {
        Instruction::StoreLocal(_) => vec![filter(STORE)],
        Instruction::SetAttr(_) => vec![Instruction::Swap, filter(KEEP), Instruction::Swap],
        Instruction::Add => operands(ADD).into(),
        Instruction::StringConcat => operands(CONCAT).into(),
        Instruction::Mul => operands(MUL).into(),
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::In
        | Instruction::CompareAndPreserve(_) => operands(COMPARE).into(),
        // Values go through the environment's formatter, which counts them.
        Instruction::EmitRaw(text) => {
            return vec![Instruction::LoadConst(Value::from(*text)), Instruction::Emit];
        }
        _ => vec![],
    };
    list.push(instruction);
    list
}

fn target<'a>(instruction: &'a mut Instruction<'_>) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::Iterate(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}
