// The error types every layer throws, and the exit code each maps to. Messages are whole sentences that name
// the offending value and its place; the command line prints them as they are.
#pragma once
#include <stdexcept>
#include <string>

namespace attnbench {

/// Base of all errors the program reports on purpose. Anything else that escapes is a bug.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller asked for something that makes no sense: wrong flag, wrong suite, wrong shape. Exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A file, tensor or result that cannot be read as what it claims to be. Exit code 2.
class DataError : public UsageError {
 public:
  using UsageError::UsageError;
};

/// A valid request that this method, operator or backend cannot do. The case's status becomes `unsupported`.
class Unsupported : public Error {
 public:
  using Error::Error;
};

/// Memory that the device does not have. The case's status becomes `skipped`; the run goes on.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

}  // namespace attnbench
