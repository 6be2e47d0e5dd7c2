// SQLite as objects: a connection, statements that bind and step, transactions. Not the history's tables:
// those are in history.cpp and migrations.cpp.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

struct sqlite3;
struct sqlite3_stmt;

namespace attnbench::sqlite {

class Connection;

/// A prepared statement. Parameters are bound in order; columns are read by number while row() is true.
class Statement {
 public:
  Statement(Statement&& o) noexcept;
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  ~Statement();

  Statement& bind(int64_t v);
  Statement& bind(int v) { return bind(static_cast<int64_t>(v)); }
  Statement& bind(double v);  ///< NaN becomes NULL: SQLite has no other word for it
  Statement& bind(std::string_view v);
  Statement& bind(const char* v) { return bind(std::string_view(v)); }
  Statement& bind(const std::string& v) { return bind(std::string_view(v)); }

  /// The next row; false at the end.
  bool row();
  /// Runs to the end and makes the statement ready for new parameters.
  void run();
  void reset();

  int64_t integer(int column) const;
  double real(int column) const;  ///< NaN for NULL
  std::string text(int column) const;
  bool null(int column) const;

 private:
  friend class Connection;
  Statement(const Connection& owner, std::string_view sql);
  const Connection& owner_;
  sqlite3_stmt* statement_ = nullptr;
  int next_ = 1;
};

/// One open file. Every error is a DataError (the file is damaged, foreign or read-only) or an Error (the
/// disk is full, another process holds it too long), with the file's name and SQLite's own words.
class Connection {
 public:
  enum class Mode : uint8_t { read, write, create };
  Connection(const std::string& path, Mode mode);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  Statement prepare(std::string_view sql) const { return {*this, sql}; }
  void execute(const std::string& sql) const;
  int64_t pragma(const std::string& name) const;
  int64_t last_row() const;
  int64_t changes() const;
  const std::string& path() const { return path_; }
  /// Throws what the result code means.
  [[noreturn]] void fail(int code, const std::string& doing) const;

 private:
  friend class Statement;
  std::string path_;
  sqlite3* db_ = nullptr;
};

/// BEGIN IMMEDIATE: a writer waits for other writers here, not in its middle. Rolls back unless committed.
class Transaction {
 public:
  explicit Transaction(const Connection& c);
  ~Transaction();
  Transaction(const Transaction&) = delete;
  void commit();

 private:
  const Connection& connection_;
  bool open_ = true;
};

}  // namespace attnbench::sqlite
