// Files that appear whole or not at all. Not for files that grow: see journal.hpp.
#pragma once
#include <string>

namespace attnbench {

/// Writes `text` to a temporary file beside `path`, syncs it, renames it over `path` and syncs the directory.
/// Links are followed; devices and pipes are written directly. Throws Error with errno's text; what was at
/// `path` before is then still there, and no temporary file is left.
void write_file_atomically(const std::string& path, const std::string& text);

/// Throws UsageError when `path` cannot be written later (no such directory, no permission, a directory):
/// for checks before hours of measuring.
void require_writable(const std::string& path);

/// Makes a new or renamed entry of the directory survive a power cut. Says nothing where a file system
/// cannot.
void sync_directory_of(const std::string& path);

/// The whole file. Throws DataError with errno's text.
std::string read_file(const std::string& path);

}  // namespace attnbench
