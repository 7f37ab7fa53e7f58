//! Conditions in CEL, the Common Expression Language: what a rule's `when` says.
//!
//! A condition is compiled once. It is bounded: in its length, in the nesting of its terms, and it
//! may go through a list or map within another only once, so that its cost is at most the product of
//! its own length and its inputs'. There are no regular expressions in it; header fields and
//! parameters are compared with them in the other words of a match.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::parser::Parser;
use cel::{Context, Value};

/// The longest condition.
const MAX_BYTES: usize = 2048;
/// The deepest nesting of terms.
const MAX_DEPTH: u16 = 32;

/// The names that a condition may use, each a map.
pub const CONDITION_NAMES: [&str; 3] = ["request", "source", "jwt"];

/// A condition, compiled.
#[derive(Clone)]
pub struct Condition {
    text: Arc<str>,
    compiled: Arc<IdedExpr>,
}

/// Why a text is no [`Condition`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// It is too long.
    #[error("it has {0} bytes, more than {MAX_BYTES}")]
    TooLong(usize),
    /// It isn't CEL.
    #[error("{0}")]
    Syntax(String),
    /// It uses a name that nothing stands behind.
    #[error("there is no {0:?}: the names are `request`, `source` and `jwt`")]
    UnknownName(String),
    /// It goes through lists within lists.
    #[error("it has one of `all`, `exists`, `map` and `filter` within another")]
    Nested,
}

impl Condition {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it holds, by the names in `context`.
    ///
    /// # Errors
    ///
    /// Why it can't be told: a key that isn't there, types that can't be compared, a result that is
    /// neither true nor false.
    pub fn holds(&self, context: &Context<'_, '_>) -> Result<bool, String> {
        match Value::resolve(&self.compiled, context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("it is neither true nor false, but {:?}", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        if text.len() > MAX_BYTES {
            return Err(ConditionError::TooLong(text.len()));
        }
        let parsed = Parser::new().max_recursion_depth(MAX_DEPTH).parse(text);
        let compiled = parsed.map_err(|errors| {
            let first = errors.errors.first();
            ConditionError::Syntax(first.map_or_else(String::new, |error| {
                let (_, column) = error.pos;
                format!("{} (at column {})", error.msg, column.max(1))
            }))
        })?;
        check(&compiled, &mut Vec::new(), false)?;
        Ok(Self { text: text.into(), compiled: Arc::new(compiled) })
    }
}

/// That all names are known, and that macros aren't nested.
fn check<'e>(
    expression: &'e IdedExpr,
    bound: &mut Vec<&'e str>,
    inside: bool,
) -> Result<(), ConditionError> {
    match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) => {
            let known = CONDITION_NAMES.contains(&name.as_str()) || bound.contains(&name.as_str());
            known.then_some(()).ok_or_else(|| ConditionError::UnknownName(name.clone()))
        }
        Expr::Select(select) => check(&select.operand, bound, inside),
        Expr::Call(call) => {
            let target = call.target.as_deref().into_iter();
            target.chain(&call.args).try_for_each(|part| check(part, bound, inside))
        }
        Expr::List(list) => list.elements.iter().try_for_each(|part| check(part, bound, inside)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => {
                check(&entry.key, bound, inside)?;
                check(&entry.value, bound, inside)
            }
            EntryExpr::StructField(field) => check(&field.value, bound, inside),
        }),
        Expr::Struct(_) => Err(ConditionError::UnknownName("a message".to_owned())),
        Expr::Comprehension(all) => {
            if inside {
                return Err(ConditionError::Nested);
            }
            check(&all.iter_range, bound, inside)?;
            check(&all.accu_init, bound, inside)?;
            let before = bound.len();
            bound.push(&all.iter_var);
            bound.push(&all.accu_var);
            bound.extend(all.iter_var2.as_deref());
            let parts = [&all.loop_cond, &all.loop_step, &all.result];
            parts.into_iter().try_for_each(|part| check(part, bound, true))?;
            bound.truncate(before);
            Ok(())
        }
    }
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Condition {}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?})", self.text)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> ConditionError {
        text.parse::<Condition>().unwrap_err()
    }

    #[test]
    fn what_is_no_condition_is_told_why() {
        assert!(matches!(error("request.method =="), ConditionError::Syntax(_)));
        assert!(matches!(error(""), ConditionError::Syntax(_)));
        assert_eq!(error("reqest.method == 'GET'"), ConditionError::UnknownName("reqest".into()));
        assert_eq!(error(&"1".repeat(MAX_BYTES + 1)), ConditionError::TooLong(MAX_BYTES + 1));
        let nested = "request.headers.all(a, request.headers.all(b, a != b))";
        assert_eq!(error(nested), ConditionError::Nested);
        for deep in [
            "(".repeat(1000) + "1" + &")".repeat(1000),
            "!".repeat(2000) + "true",
            "[".repeat(900),
            "-".repeat(1500),
        ] {
            // It ends, and doesn't take the stack down.
            let _ = deep.parse::<Condition>();
        }
        assert!(matches!(
            error(&("(".repeat(60) + "true" + &")".repeat(60))),
            ConditionError::Syntax(_)
        ));
    }

    #[test]
    fn a_condition_holds_or_not_or_cant_be_told() {
        let mut context = Context::default();
        context.add_variable_from_value(
            "request",
            std::collections::HashMap::from([("method", "GET")]),
        );
        let ask = |text: &str| text.parse::<Condition>().unwrap().holds(&context);
        assert_eq!(ask("request.method == 'GET'"), Ok(true));
        assert_eq!(ask("request.method in ['PUT', 'POST']"), Ok(false));
        assert_eq!(ask("request.exists(key, key == 'method')"), Ok(true));
        assert!(ask("request.path == '/'").is_err());
        assert!(ask("request.method").is_err());
        assert!(ask("request.method > 1").is_err());
    }
}
