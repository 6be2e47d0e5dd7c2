#include "history/sqlite.hpp"

#include <sqlite3.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <utility>

#include "kernels/core/error.hpp"

namespace attnbench::sqlite {

namespace {
// A writer adds one run in milliseconds; dozens of CI jobs that end together are through in this time.
constexpr int kBusyMilliseconds = 30000;

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

/// Characters with a meaning in a file: URI.
std::string uri_of(const std::string& path) {
  static const char digits[] = "0123456789abcdef";
  std::string out = "file:";
  for (const char c : path) {
    if (c == '?' || c == '#' || c == '%') {
      out += '%';
      out += digits[static_cast<unsigned char>(c) >> 4];
      out += digits[static_cast<unsigned char>(c) & 15];
    } else {
      out += c;
    }
  }
  return out;
}
}  // namespace

Connection::Connection(const std::string& path, Mode mode) : path_(path) {
  std::string uri = uri_of(path);
  int flags = SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  if (mode == Mode::read) {
    flags |= SQLITE_OPEN_READONLY;
    // Reading in write-ahead mode makes a small file beside it; where the folder forbids that and no writer
    // left one, the file cannot change either.
    if (::access(folder_of(path).c_str(), W_OK) != 0 && ::access((path + "-wal").c_str(), F_OK) != 0)
      uri += "?immutable=1";
  } else {
    flags |= SQLITE_OPEN_READWRITE | (mode == Mode::create ? SQLITE_OPEN_CREATE : 0);
  }
  const int code = sqlite3_open_v2(uri.c_str(), &db_, flags, nullptr);
  if (code != SQLITE_OK) {
    try {
      fail(code, "cannot open");
    } catch (...) {
      sqlite3_close(db_);
      throw;
    }
  }
  sqlite3_busy_timeout(db_, kBusyMilliseconds);
  // What a hostile file could bring along: triggers and views that call functions, corrupt pages taken on
  // trust.
  sqlite3_db_config(db_, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(db_, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  sqlite3_db_config(db_, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, nullptr);
  sqlite3_db_config(db_, SQLITE_DBCONFIG_ENABLE_VIEW, 0, nullptr);
}

Connection::~Connection() { sqlite3_close_v2(db_); }

void Connection::fail(int code, const std::string& doing) const {
  const std::string words = db_ ? sqlite3_errmsg(db_) : sqlite3_errstr(code);
  const std::string start = doing + " the history '" + path_ + "': ";
  switch (code & 0xff) {
    case SQLITE_NOTADB:
      throw DataError("'" + path_ + "' is no history of attnbench (" + words + "); it was left as it is");
    case SQLITE_CORRUPT:
      throw DataError("the history '" + path_ + "' is damaged (" + words +
                      "); it was left as it is: restore a copy, or save what can be read with `sqlite3 FILE "
                      ".recover`");
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_AUTH:
      throw DataError(start + words);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      throw Error(start + "another process has held it for " + std::to_string(kBusyMilliseconds / 1000) +
                  " s; try again");
    default:
      throw Error(start + words);
  }
}

void Connection::execute(const std::string& sql) const {
  const int code = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) fail(code, "cannot change");
}

int64_t Connection::pragma(const std::string& name) const {
  Statement s = prepare("PRAGMA " + name);
  return s.row() ? s.integer(0) : 0;
}

int64_t Connection::last_row() const { return sqlite3_last_insert_rowid(db_); }
int64_t Connection::changes() const { return sqlite3_changes64(db_); }

Statement::Statement(const Connection& owner, std::string_view sql) : owner_(owner) {
  const int code = sqlite3_prepare_v3(owner.db_, sql.data(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &statement_, nullptr);
  if (code != SQLITE_OK) owner.fail(code, "cannot read");
}

Statement::Statement(Statement&& o) noexcept
    : owner_(o.owner_), statement_(std::exchange(o.statement_, nullptr)), next_(o.next_) {}

Statement::~Statement() { sqlite3_finalize(statement_); }

Statement& Statement::bind(int64_t v) {
  if (const int code = sqlite3_bind_int64(statement_, next_++, v)) owner_.fail(code, "cannot query");
  return *this;
}
Statement& Statement::bind(double v) {
  const int code =
      std::isnan(v) ? sqlite3_bind_null(statement_, next_++) : sqlite3_bind_double(statement_, next_++, v);
  if (code) owner_.fail(code, "cannot query");
  return *this;
}
Statement& Statement::bind(std::string_view v) {
  if (const int code = sqlite3_bind_text64(statement_, next_++, v.data() ? v.data() : "", v.size(),
                                           SQLITE_TRANSIENT, SQLITE_UTF8))
    owner_.fail(code, "cannot query");
  return *this;
}

bool Statement::row() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) owner_.fail(code, "cannot use");
  return false;
}

void Statement::run() {
  while (row()) {
  }
  reset();
}

void Statement::reset() {
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
  next_ = 1;
}

int64_t Statement::integer(int column) const { return sqlite3_column_int64(statement_, column); }
double Statement::real(int column) const {
  return null(column) ? std::numeric_limits<double>::quiet_NaN() : sqlite3_column_double(statement_, column);
}
std::string Statement::text(int column) const {
  const auto* s = sqlite3_column_text(statement_, column);
  return s ? std::string(reinterpret_cast<const char*>(s),
                         static_cast<size_t>(sqlite3_column_bytes(statement_, column)))
           : std::string();
}
bool Statement::null(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

Transaction::Transaction(const Connection& c) : connection_(c) { c.execute("BEGIN IMMEDIATE"); }
Transaction::~Transaction() {
  if (!open_) return;
  try {
    connection_.execute("ROLLBACK");
  } catch (const Error&) {  // some failures have rolled back already
  }
}
void Transaction::commit() {
  connection_.execute("COMMIT");
  open_ = false;
}

}  // namespace attnbench::sqlite
