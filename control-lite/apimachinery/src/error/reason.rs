//! Reasons of failed requests, with their HTTP codes.

/// Why a request failed, in the API's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// 400: the request makes no sense.
    BadRequest,
    /// 401: no credentials.
    Unauthorized,
    /// 403: not allowed, by authorization or by admission.
    Forbidden,
    /// 404: no such object or resource.
    NotFound,
    /// 405: the resource does not do that.
    MethodNotAllowed,
    /// 406: no response format the client takes.
    NotAcceptable,
    /// 409: the name is taken.
    AlreadyExists,
    /// 409: a stale resourceVersion or a failed precondition.
    Conflict,
    /// 410: the revision is compacted away.
    Expired,
    /// 410: gone, do not retry.
    Gone,
    /// 413: the body is too large.
    RequestEntityTooLarge,
    /// 415: a body in a format that is not read here.
    UnsupportedMediaType,
    /// 422: the object is invalid.
    Invalid,
    /// 429: later.
    TooManyRequests,
    /// 500: our fault.
    InternalError,
    /// 500: try again.
    ServerTimeout,
    /// 503: not now.
    ServiceUnavailable,
    /// 504: no answer in time.
    Timeout,
}

impl Reason {
    /// The HTTP status code.
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired | Self::Gone => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError | Self::ServerTimeout => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The text in `status.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Expired => "Expired",
            Self::Gone => "Gone",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::ServerTimeout => "ServerTimeout",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }
}
