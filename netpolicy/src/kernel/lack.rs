//! What a kernel may lack when it refuses a message: parts of nf_tables are modules of their own, and some kernels are
//! built without them. The kernel itself says no more than that something is not there.

use std::collections::BTreeSet;
use std::io;

use super::attributes::{Attributes, Message};
use super::encode::Object;

/// Modules by the expression that needs them. What is not here is in nf_tables itself.
const MODULES: [(&str, &str); 7] = [
    ("ct", "nft_ct"),
    ("connlimit", "nft_connlimit"),
    ("fib", "nft_fib_inet"),
    ("limit", "nft_limit"),
    ("log", "nft_log"),
    ("masq", "nft_masq"),
    ("reject", "nft_reject_inet"),
];

const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DYNSET_EXPRESSION: u16 = 7;
const CHAIN_TYPE: u16 = 7;

/// What to look for when `message`, which is about `object`, was refused with `code`. Nothing where the refusal has
/// another reason.
pub(crate) fn hint(object: &Object, message: &Message<'_>, code: &io::Error) -> Option<String> {
    let is_lack = matches!(
        code.raw_os_error(),
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
    );
    let (_, attributes) = message.netfilter().filter(|_| is_lack)?;
    let modules = match object {
        Object::Table(family) => {
            let option = family.to_string().to_ascii_uppercase();
            vec![format!(
                "nf_tables for family {family}, CONFIG_NF_TABLES_{option}"
            )]
        }
        Object::Chain(..) => {
            let kind = attributes.find(CHAIN_TYPE).map(|kind| kind.text())?;
            vec![format!("nft_chain_{kind}")]
        }
        Object::Rule(..) => of_rule(attributes),
        Object::Set(..) => vec!["sets of ranges with several fields, which Linux has since 5.6".to_owned()],
        Object::Elements(..) => return None,
    };
    Some(format!(". This kernel may lack {}", modules.join(" or ")))
}

fn of_rule(attributes: Attributes<'_>) -> Vec<String> {
    let list = attributes.find(RULE_EXPRESSIONS).into_iter();
    let mut names = BTreeSet::new();
    for expression in list.flat_map(|list| list.inside()) {
        let parts = expression.inside();
        names.extend(parts.find(EXPRESSION_NAME).map(|name| name.text()));
        let within = parts
            .find(EXPRESSION_DATA)
            .and_then(|data| data.inside().find(DYNSET_EXPRESSION));
        names.extend(within.and_then(|inner| Some(inner.inside().find(EXPRESSION_NAME)?.text())));
    }
    MODULES
        .iter()
        .filter(|(name, _)| names.contains(*name))
        .map(|(_, module)| (*module).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::attributes::Messages;
    use super::super::encode::Transaction;
    use super::super::socket::Refusal;
    use crate::plan::tests::host;
    use crate::{Intent, plan};

    /// What an operator reads when the kernel refuses the message that holds these bytes.
    fn words(holds: &[u8], code: i32) -> String {
        let intent = Intent {
            host: host(),
            ports: Vec::new(),
        };
        let transaction = Transaction::replace(&plan(&intent).unwrap());
        let bytes = transaction.bytes().unwrap();
        let mut messages = Messages(&bytes).skip(1);
        let found = messages.find(|message| message.payload.windows(holds.len()).any(|part| part == holds));
        let refusal = Refusal {
            sequence: found.unwrap().sequence,
            code,
            text: None,
        };
        transaction.refused(&bytes, refusal).to_string()
    }

    #[test]
    fn a_part_that_the_kernel_was_built_without_is_named_with_the_rule_that_needs_it() {
        let flows = words(b"More flows at once than one guest may have", libc::ENOENT);
        assert!(flows.contains("rule 3 of chain guest_input"), "{flows}");
        assert!(flows.ends_with("may lack nft_ct or nft_connlimit"), "{flows}");
        let nat = words(b"postrouting", libc::ENOENT);
        assert!(
            nat.contains("chain postrouting") && nat.ends_with("nft_chain_nat"),
            "{nat}"
        );
        let table = words(b"agentlab", libc::EAFNOSUPPORT);
        assert!(table.ends_with("CONFIG_NF_TABLES_BRIDGE"), "{table}");
        // Memory that ran out is no missing part.
        let other = words(b"More flows at once than one guest may have", libc::ENOMEM);
        assert!(!other.contains("lack"), "{other}");
    }
}
