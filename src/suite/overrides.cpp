#include "suite/overrides.hpp"

#include <algorithm>

#include "methods/method.hpp"

namespace attnbench {

namespace {

using yaml::Entry;
using yaml::Node;
using yaml::NodePtr;

struct Override {
  Place place;
  std::string path;
  NodePtr value;
  ErrorList& errors;
  void fail(const std::string& message) const { errors.add(place, message); }
};

/// The map `node` with `key` set to `value`, or without `key` when `value` is null.
NodePtr with_entry(const NodePtr& node, const std::string& key, const Place& place, const NodePtr& value) {
  auto copy = node ? std::make_shared<Node>(*node) : yaml::make_map(place);
  const auto it = std::find_if(copy->entries.begin(), copy->entries.end(),
                               [&key](const Entry& e) { return e.key == key; });
  if (!value) {
    if (it != copy->entries.end()) copy->entries.erase(it);
  } else if (it != copy->entries.end()) {
    it->value = value;
    it->key_place = place;
  } else {
    copy->entries.push_back({key, place, value});
  }
  return copy;
}

NodePtr child(const NodePtr& node, const std::string& key) {
  if (!node || !node->is_map()) return nullptr;
  const Entry* e = node->find(key);
  return e ? e->value : nullptr;
}

/// Sets a dotted path below `node`, making maps on the way.
NodePtr set_path(const NodePtr& node, const std::string& path, const Override& o) {
  if (node && !node->is_map() && !node->is_null()) {
    o.fail("'" + o.path + "' goes through " + node->describe() + ", not through a map");
    return node;
  }
  const NodePtr map = node && node->is_map() ? node : nullptr;
  const size_t dot = path.find('.');
  const std::string key = path.substr(0, dot);
  if (dot == std::string::npos) return with_entry(map, key, o.place, o.value);
  // The keys of axes hold dots themselves.
  const std::string rest = path.substr(dot + 1);
  if (key == "axes")
    return with_entry(map, key, o.place, with_entry(child(map, key), rest, o.place, o.value));
  return with_entry(map, key, o.place, set_path(child(map, key), rest, o));
}

/// A value given for a key that an axis of `node` sets takes the axis's place.
NodePtr without_axis(const NodePtr& node, const std::string& target) {
  const NodePtr axes = child(node, "axes");
  if (!axes || !axes->is_map() || !axes->find(target)) return node;
  return with_entry(node, "axes", axes->place, with_entry(axes, target, axes->place, nullptr));
}

/// `cases.NAME.rest` and `claims.ID.rest`: elements of a list, by the key that names them.
NodePtr set_in_list(const NodePtr& list, const std::string& rest, const std::string& what,
                    const std::vector<std::string>& name_keys, const Override& o) {
  if (!list || !list->is_list()) {
    o.fail("the suite has no list of " + what + "s");
    return list;
  }
  auto copy = std::make_shared<Node>(*list);
  std::vector<std::string> names;
  for (NodePtr& item : copy->items) {
    std::string name;
    if (item->is_scalar()) name = item->text;
    for (const std::string& key : name_keys)
      if (const NodePtr n = child(item, key); n && name.empty()) name = n->text;
    names.push_back(name);
    if (name.empty() || rest.size() <= name.size() + 1 || rest.compare(0, name.size(), name) != 0 ||
        rest[name.size()] != '.')
      continue;
    const std::string inside = rest.substr(name.size() + 1);
    NodePtr element = item;
    if (item->is_scalar()) element = with_entry(nullptr, name_keys.back(), item->place, item);
    item = set_path(without_axis(element, inside), inside, o);
    return copy;
  }
  const std::string word = rest.substr(0, rest.find('.'));
  const std::string near = nearest_word(word, names);
  o.fail("the suite has no " + what + " '" + word + "'" +
         (near.empty() ? "" : "; did you mean '" + near + "'?"));
  return list;
}

/// `params.X`: every case whose method has the parameter.
NodePtr set_everywhere(const NodePtr& root, const std::string& param, const Override& o) {
  const NodePtr cases = child(root, "cases");
  if (!cases || !cases->is_list()) {
    o.fail("the suite has no list of cases");
    return root;
  }
  auto copy = std::make_shared<Node>(*cases);
  bool found = false;
  std::vector<std::string> names;
  for (NodePtr& item : copy->items) {
    const NodePtr method = item->is_scalar() ? item : child(item, "method");
    if (!method) continue;
    for (const Method* m : all_methods()) {
      if (m->info().id != method->text) continue;
      for (const ParamSpec& s : m->info().params) {
        names.push_back(s.name);
        if (s.name != param) continue;
        found = true;
        NodePtr element = item;
        if (item->is_scalar()) element = with_entry(nullptr, "method", item->place, item);
        item = set_path(without_axis(element, "params." + param), "params." + param, o);
      }
    }
  }
  if (!found) {
    const std::string near = nearest_word(param, names);
    o.fail("no method of the suite has a parameter '" + param + "'" +
           (near.empty() ? "" : "; did you mean '" + near + "'?"));
  }
  return without_axis(with_entry(root, "cases", cases->place, copy), "params." + param);
}

}  // namespace

NodePtr apply_overrides(const NodePtr& given, const std::vector<std::string>& set, ErrorList& errors) {
  NodePtr root = given;
  for (const std::string& text : set) {
    const Place place{"--set " + text, 0, 0};
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      errors.add(place, "'key=value' is wanted, as in --set problem.batch=1");
      continue;
    }
    Override o{place, text.substr(0, equals), nullptr, errors};
    try {
      const NodePtr parsed = yaml::parse(text.substr(equals + 1), place.file);
      auto value = std::make_shared<Node>(*parsed);
      value->place = place;
      value->text_column = 0;
      o.value = value;
    } catch (const SuiteErrors& e) {
      for (const SuiteError& error : e.errors()) errors.add(place, error.message);
      continue;
    }
    const size_t dot = o.path.find('.');
    const std::string head = o.path.substr(0, dot);
    const std::string rest = dot == std::string::npos ? "" : o.path.substr(dot + 1);
    if (head == "params" && !rest.empty())
      root = set_everywhere(root, rest, o);
    else if (head == "cases" && !rest.empty())
      root = with_entry(root, "cases", place,
                        set_in_list(child(root, "cases"), rest, "case", {"name", "method"}, o));
    else if (head == "claims" && !rest.empty())
      root = with_entry(root, "claims", place, set_in_list(child(root, "claims"), rest, "claim", {"id"}, o));
    else
      root = set_path(head == "problem" ? without_axis(root, o.path) : root, o.path, o);
  }
  return root;
}

}  // namespace attnbench
