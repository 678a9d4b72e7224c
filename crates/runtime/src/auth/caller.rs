use std::fmt;
use std::sync::Arc;

use tonic::{Code, Request, Status};
use waybill_domain::{ProjectId, ProjectName, Role};

use crate::status;

/// Who calls, and for what the key is good. In the extensions of every request that
/// `grpc::serve` hands to a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    name: Arc<str>,
    prefix: Option<Arc<str>>,
    role: Role,
    /// `None`: all.
    projects: Option<Arc<[String]>>,
}

impl Caller {
    /// Who calls where nobody is asked for a key: everything is allowed.
    #[must_use]
    pub fn anybody() -> Self {
        Self { name: "anybody".into(), prefix: None, role: Role::Operator, projects: None }
    }

    /// Makes the caller that a key names. `projects`: those it is good for; `None`: all.
    #[must_use]
    pub fn new(name: &str, prefix: Option<&str>, role: Role, projects: Option<Vec<String>>) -> Self {
        Self { name: name.into(), prefix: prefix.map(Into::into), role, projects: projects.map(Into::into) }
    }

    /// Returns who called. Without `grpc::serve` in front, nobody that may see anything.
    pub fn of<T>(request: &Request<T>) -> Self {
        let nobody = || Self::new("nobody", None, Role::Reader, Some(Vec::new()));
        request.extensions().get().cloned().unwrap_or_else(nobody)
    }

    /// Returns what the key is for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the part of the key that is shown, if there is a key.
    #[must_use]
    pub fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// Returns what the key lets its holder do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns the names of the projects that the key is good for; `None`: all.
    #[must_use]
    pub fn projects(&self) -> Option<&[String]> {
        self.projects.as_deref()
    }

    /// Says whether the key is good for a project.
    #[must_use]
    pub fn may_see(&self, project: &str) -> bool {
        self.projects.as_deref().is_none_or(|projects| projects.iter().any(|good| good == project))
    }

    /// Says whether the key is good for the project of that id.
    #[must_use]
    pub fn may_see_id(&self, project: ProjectId) -> bool {
        let is = |name: &String| name.parse::<ProjectName>().is_ok_and(|name| ProjectId::derive(&name) == project);
        self.projects.as_deref().is_none_or(|projects| projects.iter().any(is))
    }

    /// Makes PERMISSION_DENIED for a project that the key is not good for. It says nothing about
    /// whether there is such a project.
    pub(super) fn no_project(&self, project: &str) -> Status {
        let shown: String = project.chars().take(64).collect();
        status::with_reason(
            Code::PermissionDenied,
            "FOREIGN_PROJECT",
            format!("{self} is not good for project {shown:?}: use another key, or have one made for that project"),
        )
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix() {
            Some(prefix) => write!(f, "key {prefix} ({}, a {}'s)", self.name, self.role),
            None => write!(f, "{} ({})", self.name, self.role),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_no_layer_has_seen_comes_from_nobody() {
        let caller = Caller::of(&Request::new(()));
        assert!(!caller.may_see("default"));
        assert_eq!(caller.role(), Role::Reader);
    }

    #[test]
    fn a_key_is_good_for_its_projects_or_for_all() {
        let limited = Caller::new("ci", Some("abcdefgh"), Role::Writer, Some(vec!["a".to_owned()]));
        assert!(limited.may_see("a") && !limited.may_see("ab") && !limited.may_see(""));
        let id = |name: &str| ProjectId::derive(&name.parse().unwrap());
        assert!(limited.may_see_id(id("a")) && !limited.may_see_id(id("b")));
        let all = Caller::new("ci", None, Role::Reader, None);
        assert!(all.may_see("any") && all.may_see_id(id("any")));
    }
}
