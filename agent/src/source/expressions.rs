//! Expressions of ruff's syntax tree to [`Expr`].

use crate::python::ir::{
    Call, Comprehension, Conversion, Expr, Lambda, MAX_EXPR_DEPTH, MAX_NODES, Makes, Operator, Parameter,
    ParameterKind, Unary, mangle,
};
use num_bigint::BigInt;
use ruff_python_ast as ast;
use unstale_protocol::value::Value;

/// Longest text or bytes constant that is kept.
pub(crate) const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Lowers an expression that stands alone.
pub(super) fn lower(expr: &ast::Expr) -> Expr {
    Lowering::default().expr(expr, None)
}

/// Lowers expressions and counts them.
#[derive(Debug, Default)]
pub(super) struct Lowering {
    nodes: usize,
    depth: usize,
}

impl Lowering {
    /// Tells whether the summary has grown beyond its bound.
    pub(super) fn is_full(&self) -> bool {
        self.nodes >= MAX_NODES
    }

    /// Counts one node.
    pub(super) fn count(&mut self) {
        self.nodes += 1;
    }

    /// Lowers an expression inside `class`, whose private names are mangled.
    pub(super) fn expr(&mut self, expr: &ast::Expr, class: Option<&str>) -> Expr {
        self.count();
        if self.is_full() {
            return Expr::unresolved("a module too large to follow");
        }
        if self.depth >= MAX_EXPR_DEPTH {
            return Expr::unresolved("an expression nested too deeply");
        }
        self.depth += 1;
        let lowered = self.at_depth(expr, class);
        self.depth -= 1;
        lowered
    }

    fn at_depth(&mut self, expr: &ast::Expr, class: Option<&str>) -> Expr {
        match expr {
            ast::Expr::StringLiteral(text) => string(text.value.to_str()),
            ast::Expr::BytesLiteral(bytes) => {
                let bytes: Vec<u8> = bytes.value.bytes().take(MAX_TEXT_BYTES + 1).collect();
                if bytes.len() > MAX_TEXT_BYTES {
                    return Expr::unresolved("a very long constant");
                }
                Expr::Constant(Value::Bytes(bytes))
            }
            ast::Expr::NumberLiteral(number) => number_constant(&number.value),
            ast::Expr::BooleanLiteral(flag) => Expr::Constant(Value::Bool(flag.value)),
            ast::Expr::NoneLiteral(_) => Expr::Constant(Value::None),
            ast::Expr::EllipsisLiteral(_) => Expr::unresolved("..."),
            ast::Expr::Name(name) => Expr::Name(mangle(class, name.id.as_str())),
            ast::Expr::Attribute(attribute) => {
                Expr::Attribute(Box::new(self.expr(&attribute.value, class)), mangle(class, attribute.attr.as_str()))
            }
            ast::Expr::Call(call) => Expr::Call(Box::new(Call {
                function: self.expr(&call.func, class),
                arguments: self.all(&call.arguments.args, class),
                keywords: self.keywords(&call.arguments.keywords, class),
            })),
            ast::Expr::Tuple(tuple) => Expr::Tuple(self.all(&tuple.elts, class)),
            ast::Expr::List(list) => Expr::List(self.all(&list.elts, class)),
            ast::Expr::Set(set) => Expr::Set(self.all(&set.elts, class)),
            ast::Expr::Dict(dict) => {
                let pairs = dict.items.iter().map(|item| {
                    let key = item.key.as_ref().map(|key| self.expr(key, class));
                    (key, self.expr(&item.value, class))
                });
                Expr::Dict(pairs.collect())
            }
            ast::Expr::BinOp(operation) => self.operation(operation, class),
            ast::Expr::UnaryOp(unary) => {
                Expr::Unary(unary_operator(unary.op), Box::new(self.expr(&unary.operand, class)))
            }
            ast::Expr::FString(text) => self.join(text, class),
            ast::Expr::Subscript(subscript) => Expr::Subscript(
                Box::new(self.expr(&subscript.value, class)),
                Box::new(self.expr(&subscript.slice, class)),
            ),
            ast::Expr::Starred(starred) => Expr::Starred(Box::new(self.expr(&starred.value, class))),
            ast::Expr::Lambda(lambda) => {
                let parameters = lambda.parameters.as_ref().map(|list| self.parameters(list, class));
                let returns = self.expr(&lambda.body, class);
                Expr::Lambda(Box::new(Lambda { parameters: parameters.unwrap_or_default(), returns }))
            }
            ast::Expr::ListComp(list) => self.comprehension(Makes::List, &list.elt, &list.generators, class),
            ast::Expr::SetComp(set) => self.comprehension(Makes::Set, &set.elt, &set.generators, class),
            ast::Expr::Generator(made) => self.comprehension(Makes::Generator, &made.elt, &made.generators, class),
            ast::Expr::BoolOp(_) | ast::Expr::Compare(_) | ast::Expr::If(_) => Expr::unresolved("a condition"),
            ast::Expr::DictComp(_) => Expr::unresolved("a comprehension"),
            ast::Expr::Slice(_) => Expr::unresolved("a slice"),
            ast::Expr::TString(_) => Expr::unresolved("a template string"),
            ast::Expr::Named(_) => Expr::unresolved("an assignment expression"),
            ast::Expr::Await(_) | ast::Expr::Yield(_) | ast::Expr::YieldFrom(_) | ast::Expr::IpyEscapeCommand(_) => {
                Expr::unresolved("an expression that suspends")
            }
        }
    }

    fn all(&mut self, list: &[ast::Expr], class: Option<&str>) -> Vec<Expr> {
        list.iter().map(|item| self.expr(item, class)).collect()
    }

    pub(super) fn keywords(&mut self, list: &[ast::Keyword], class: Option<&str>) -> Vec<(Option<String>, Expr)> {
        list.iter()
            .map(|keyword| {
                let name = keyword.arg.as_ref().map(|name| name.as_str().to_owned());
                (name, self.expr(&keyword.value, class))
            })
            .collect()
    }

    /// Long chains of one operator lean to the left: they are walked in a loop, and kept flat.
    fn operation(&mut self, operation: &ast::ExprBinOp, class: Option<&str>) -> Expr {
        let mut right = vec![&*operation.right];
        let mut left = &*operation.left;
        while let ast::Expr::BinOp(inner) = left {
            if inner.op != operation.op {
                break;
            }
            right.push(&inner.right);
            left = &inner.left;
        }
        let mut operands = vec![self.expr(left, class)];
        operands.extend(right.iter().rev().map(|operand| self.expr(operand, class)));
        Expr::Operation(operator(operation.op), operands)
    }

    fn join(&mut self, text: &ast::ExprFString, class: Option<&str>) -> Expr {
        let mut parts = Vec::new();
        for part in &text.value {
            match part {
                ast::FStringPart::Literal(literal) => parts.push(string(literal.as_str())),
                ast::FStringPart::FString(formatted) => {
                    for element in &formatted.elements {
                        parts.push(match element {
                            ast::InterpolatedStringElement::Literal(literal) => string(&literal.value),
                            ast::InterpolatedStringElement::Interpolation(inner) => {
                                let conversion = match (inner.conversion, &inner.format_spec, &inner.debug_text) {
                                    (ast::ConversionFlag::None, None, None) => Conversion::None,
                                    (ast::ConversionFlag::Str, None, None) => Conversion::Str,
                                    _ => Conversion::Other,
                                };
                                Expr::Format(Box::new(self.expr(&inner.expression, class)), conversion)
                            }
                        });
                    }
                }
            }
        }
        Expr::Join(parts)
    }

    pub(super) fn parameters(&mut self, list: &ast::Parameters, class: Option<&str>) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        let rest =
            |name: &ast::Parameter, kind| Parameter { name: mangle(class, name.name.as_str()), kind, default: None };
        for plain in list.posonlyargs.iter().chain(&list.args) {
            parameters.push(self.parameter(plain, ParameterKind::Plain, class));
        }
        parameters.extend(list.vararg.iter().map(|name| rest(name, ParameterKind::Rest)));
        for keyword in &list.kwonlyargs {
            parameters.push(self.parameter(keyword, ParameterKind::Keyword, class));
        }
        parameters.extend(list.kwarg.iter().map(|name| rest(name, ParameterKind::RestByName)));
        parameters
    }

    fn parameter(&mut self, one: &ast::ParameterWithDefault, kind: ParameterKind, class: Option<&str>) -> Parameter {
        Parameter {
            name: mangle(class, one.name().as_str()),
            kind,
            default: one.default().map(|default| self.expr(default, class)),
        }
    }

    fn comprehension(
        &mut self,
        makes: Makes,
        element: &ast::Expr,
        generators: &[ast::Comprehension],
        class: Option<&str>,
    ) -> Expr {
        let [only] = generators else {
            return Expr::unresolved("a nested comprehension");
        };
        if only.is_async || !only.ifs.is_empty() {
            return Expr::unresolved("a comprehension with a condition");
        }
        let names = match &only.target {
            ast::Expr::Name(name) => vec![mangle(class, name.id.as_str())],
            ast::Expr::Tuple(tuple) => {
                let names = tuple.elts.iter().map(|target| match target {
                    ast::Expr::Name(name) => Some(mangle(class, name.id.as_str())),
                    _ => None,
                });
                match names.collect::<Option<Vec<_>>>() {
                    Some(names) if names.len() > 1 => names,
                    _ => return Expr::unresolved("a comprehension over nested tuples"),
                }
            }
            _ => return Expr::unresolved("a comprehension over nested tuples"),
        };
        Expr::Comprehension(Box::new(Comprehension {
            makes,
            element: self.expr(element, class),
            names,
            iterable: self.expr(&only.iter, class),
        }))
    }
}

/// The parser puts U+FFFD where a lone surrogate was escaped; such text is not known.
pub(crate) fn string(text: &str) -> Expr {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Expr::unresolved("text with a lone surrogate");
    }
    if text.len() > MAX_TEXT_BYTES {
        return Expr::unresolved("a very long constant");
    }
    Expr::text(text)
}

fn number_constant(number: &ast::Number) -> Expr {
    match number {
        ast::Number::Int(number) => match number.as_u64() {
            Some(small) => Expr::Constant(Value::int(small)),
            None => big(&number.to_string()),
        },
        ast::Number::Float(number) => Expr::Constant(Value::float(*number)),
        ast::Number::Complex { .. } => Expr::unresolved("a complex number"),
    }
}

/// Reads an integer too large for 64 bits from its token: `0x…`, `0o…`, `0b…` or decimal, with underscores.
fn big(token: &str) -> Expr {
    const MAX_DIGITS: usize = 9_000;
    let digits = token.replace('_', "").to_ascii_lowercase();
    let (digits, radix) = match digits.get(..2) {
        Some("0x") => (digits.get(2..).unwrap_or(""), 16),
        Some("0o") => (digits.get(2..).unwrap_or(""), 8),
        Some("0b") => (digits.get(2..).unwrap_or(""), 2),
        _ => (digits.as_str(), 10),
    };
    if digits.len() > MAX_DIGITS {
        return Expr::unresolved("a very long constant");
    }
    match BigInt::parse_bytes(digits.as_bytes(), radix) {
        Some(number) => Expr::Constant(Value::Int(number)),
        None => Expr::unresolved("a number"),
    }
}

pub(super) fn operator(operator: ast::Operator) -> Operator {
    match operator {
        ast::Operator::Add => Operator::Add,
        ast::Operator::Sub => Operator::Subtract,
        ast::Operator::Mult => Operator::Multiply,
        ast::Operator::MatMult => Operator::MatrixMultiply,
        ast::Operator::Div => Operator::Divide,
        ast::Operator::Mod => Operator::Remainder,
        ast::Operator::Pow => Operator::Power,
        ast::Operator::LShift => Operator::ShiftLeft,
        ast::Operator::RShift => Operator::ShiftRight,
        ast::Operator::BitOr => Operator::Or,
        ast::Operator::BitXor => Operator::Xor,
        ast::Operator::BitAnd => Operator::And,
        ast::Operator::FloorDiv => Operator::FloorDivide,
    }
}

fn unary_operator(operator: ast::UnaryOp) -> Unary {
    match operator {
        ast::UnaryOp::Invert => Unary::Invert,
        ast::UnaryOp::Not => Unary::Not,
        ast::UnaryOp::UAdd => Unary::Plus,
        ast::UnaryOp::USub => Unary::Minus,
    }
}
