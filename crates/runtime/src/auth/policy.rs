use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage, Value};
use waybill_domain::Role;

/// The option of a method that says who may call it, in `waybill/common/v1/access.proto`.
const OPTION: &str = "waybill.common.v1.access";

/// How a call is kept within the projects of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The request has the project's name at this path of field numbers.
    Project(Arc<[u32]>),
    /// The handler answers about the key's projects only.
    Answer,
    /// Nothing of a project is in it.
    None,
    /// The key has to be good for every project.
    All,
}

/// Who may call a method.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) role: Role,
    pub(crate) scope: Scope,
    pub(crate) audited: bool,
    pub(crate) input: MessageDescriptor,
    pub(crate) output: MessageDescriptor,
}

/// Who may call what, read from the descriptors that reflection hands out, too.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy(Arc<HashMap<String, Access>>);

impl Policy {
    /// Reads the options of every method. One without is in no policy.
    pub(crate) fn read(descriptor_set: &[u8]) -> anyhow::Result<Self> {
        let pool = DescriptorPool::decode(descriptor_set).context("read the descriptor set")?;
        let mut methods = HashMap::new();
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            if let Some(access) = read(&pool, &method).with_context(|| format!("read {}", method.full_name()))? {
                methods.insert(format!("/{}/{}", method.parent_service().full_name(), method.name()), access);
            }
        }
        Ok(Self(Arc::new(methods)))
    }

    /// Finds a method by its path ("/waybill.ingestion.v1.IngestionService/PutSource").
    pub(crate) fn of(&self, path: &str) -> Option<&Access> {
        self.0.get(path)
    }
}

fn read(pool: &DescriptorPool, method: &MethodDescriptor) -> anyhow::Result<Option<Access>> {
    let options = method.options();
    let Some(option) = pool.get_extension_by_name(OPTION).filter(|option| options.has_extension(option)) else {
        return Ok(None);
    };
    let access = options.get_extension(&option);
    let access = access.as_message().context("the option is no message")?;
    let name = |field: &str| enum_name(access, field);
    let role = match name("role")?.as_str() {
        "ROLE_READER" => Role::Reader,
        "ROLE_WRITER" => Role::Writer,
        "ROLE_OPERATOR" => Role::Operator,
        other => bail!("role is {other}"),
    };
    let scope = match name("scope")?.as_str() {
        "SCOPE_PROJECT" => Scope::Project(path(method.input(), text(access, "project")?.as_str())?),
        "SCOPE_ANSWER" => Scope::Answer,
        "SCOPE_NONE" => Scope::None,
        "SCOPE_ALL" => Scope::All,
        other => bail!("scope is {other}"),
    };
    let audited = field(access, "audited")?.as_bool().unwrap_or_default();
    // What is audited is read as a whole before it is done.
    ensure!(!(audited && method.is_client_streaming()), "a method that takes a stream can't be audited");
    Ok(Some(Access { role, scope, audited, input: method.input(), output: method.output() }))
}

fn field(message: &DynamicMessage, name: &str) -> anyhow::Result<Value> {
    Ok(message.get_field_by_name(name).with_context(|| format!("the option has no field {name}"))?.into_owned())
}

fn text(message: &DynamicMessage, name: &str) -> anyhow::Result<String> {
    Ok(field(message, name)?.as_str().unwrap_or_default().to_owned())
}

fn enum_name(message: &DynamicMessage, name: &str) -> anyhow::Result<String> {
    let number = field(message, name)?.as_enum_number().context("no enum")?;
    let kind = message.descriptor().get_field_by_name(name).context("no such field")?.kind();
    let value = kind.as_enum().and_then(|kind| kind.get_value(number)).context("unknown value")?;
    Ok(value.name().to_owned())
}

/// Turns "header.project" into field numbers, which must lead to a text.
fn path(message: MessageDescriptor, names: &str) -> anyhow::Result<Arc<[u32]>> {
    let mut at = Kind::Message(message);
    let mut numbers = Vec::new();
    for name in names.split('.') {
        let field = at.as_message().and_then(|message| message.get_field_by_name(name));
        let field = field.with_context(|| format!("there is no field {names:?} for the project's name"))?;
        numbers.push(field.number());
        at = field.kind();
    }
    ensure!(at == Kind::String, "the field {names:?} holds no text");
    Ok(numbers.into())
}
