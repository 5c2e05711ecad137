//! What a principal may do, and which of it an endpoint needs.

use std::collections::HashMap;

use axum::http::Method;
use serde_json::Value;

/// A right that a token gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    OrdersWrite,
    OrdersRead,
    StockWrite,
}

impl Scope {
    pub(crate) const ALL: [Self; 3] = [Self::OrdersWrite, Self::OrdersRead, Self::StockWrite];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::OrdersWrite => "orders:write",
            Self::OrdersRead => "orders:read",
            Self::StockWrite => "stock:write",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }

    /// The names of all scopes, as a text for a person.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    const fn bit(self) -> u8 {
        match self {
            Self::OrdersWrite => 1,
            Self::OrdersRead => 2,
            Self::StockWrite => 4,
        }
    }
}

/// The rights of a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Scopes(u8);

impl Scopes {
    pub(super) fn has_any(self, wanted: &[Scope]) -> bool {
        wanted.iter().any(|scope| self.0 & scope.bit() != 0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need<'o> {
    /// Nothing: the operation is open to all.
    Nothing,
    /// A principal. The document does not know the operation.
    Principal,
    /// A principal with one of these scopes.
    AnyOf(&'o [Scope]),
}

/// The operations of the API, and the scopes that each needs.
///
/// The API's document has them as `security`. An operation without it needs a principal, and one
/// whose `security` is empty is open to all. A scope that is not known is given by no token.
#[derive(Debug, Default)]
pub(super) struct Operations(HashMap<String, HashMap<String, Security>>);

#[derive(Debug)]
enum Security {
    Open,
    AnyOf(Vec<Scope>),
}

impl Security {
    fn of(listed: &[Value]) -> Self {
        if listed.is_empty() {
            return Self::Open;
        }
        let scopes = listed.iter().filter_map(|one| one["bearer"].as_array()).flatten();
        Self::AnyOf(scopes.filter_map(|scope| Scope::parse(scope.as_str()?)).collect())
    }
}

impl Operations {
    pub(super) fn of(document: &Value) -> Self {
        let mut operations: HashMap<String, HashMap<String, Security>> = HashMap::new();
        for (route, methods) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                let Some(security) = operation["security"].as_array() else { continue };
                let of_route = operations.entry(route.clone()).or_default();
                of_route.insert(method.to_uppercase(), Security::of(security));
            }
        }
        Self(operations)
    }

    /// What a request to this route needs. `HEAD` is answered as `GET` is.
    pub(super) fn need(&self, route: &str, method: &Method) -> Need<'_> {
        let method = if method == Method::HEAD { Method::GET } else { method.clone() };
        match self.0.get(route).and_then(|methods| methods.get(method.as_str())) {
            None => Need::Principal,
            Some(Security::Open) => Need::Nothing,
            Some(Security::AnyOf(scopes)) => Need::AnyOf(scopes),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ingest::api::OPENAPI;

    #[test]
    fn every_operation_but_the_document_needs_a_scope() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let operations = Operations::of(&document);
        let mut seen = 0;

        for (route, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                let method = method.to_uppercase().parse().unwrap();
                let need = operations.need(route, &method);
                let is_open = route == "/openapi.json";
                assert_eq!(matches!(need, Need::Nothing), is_open, "{method} {route}");
                assert_eq!(matches!(need, Need::AnyOf(_)), !is_open, "{method} {route}");
                seen += 1;
            }
        }

        assert_eq!(seen, 12);
    }

    #[test]
    fn an_unknown_scope_opens_nothing() {
        let secured = |security: Value| json!({"get": {"security": security}});
        let operations = Operations::of(&json!({"paths": {
            "/open": secured(json!([])),
            "/unknown": secured(json!([{"bearer": ["orders:delete"]}])),
            "/other": secured(json!([{"cookie": []}, {}])),
            "/partly": secured(json!([{"bearer": ["orders:delete"]}, {"bearer": ["orders:read"]}])),
        }}));

        for (route, needed) in [
            ("/open", Need::Nothing),
            ("/unknown", Need::AnyOf(&[])),
            ("/other", Need::AnyOf(&[])),
            ("/partly", Need::AnyOf(&[Scope::OrdersRead])),
        ] {
            assert_eq!(operations.need(route, &Method::GET), needed, "{route}");
        }
        assert!(!Scopes::from_iter(Scope::ALL).has_any(&[]));
    }

    #[test]
    fn writing_and_reading_need_scopes_of_their_own() {
        let operations = Operations::of(&serde_json::from_str(OPENAPI).unwrap());
        let product = [Scope::OrdersRead, Scope::StockWrite];

        for (method, route, needed) in [
            (Method::POST, "/v1/orders", &[Scope::OrdersWrite][..]),
            (Method::PUT, "/v1/orders/{id}", &[Scope::OrdersWrite]),
            (Method::GET, "/v1/orders/{id}", &[Scope::OrdersRead]),
            (Method::HEAD, "/v1/orders/{id}", &[Scope::OrdersRead]),
            (Method::POST, "/v1/stock/adjustments", &[Scope::StockWrite]),
            (Method::GET, "/v1/products/{id}", &product),
        ] {
            assert_eq!(operations.need(route, &method), Need::AnyOf(needed), "{method} {route}");
        }
        assert_eq!(operations.need("/v1/orders", &Method::DELETE), Need::Principal);
    }
}
