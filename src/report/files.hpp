// What reports need of files beside writing them whole, which inputs/atomic_file.hpp does.
#pragma once
#include <string>

namespace attnbench {

/// Throws UsageError when `path` cannot be written later (no such directory, no permission, a directory):
/// for checks before hours of measuring. Makes nothing.
void require_writable(const std::string& path);

/// Makes a new or renamed entry of the directory survive a power cut. Says nothing where a file system
/// cannot.
void sync_directory_of(const std::string& path);

/// The whole file. Throws DataError with errno's text.
std::string read_file(const std::string& path);

}  // namespace attnbench
