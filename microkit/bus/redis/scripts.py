"""The scripts that run in the server. Each is atomic there, so that what is checked still holds when it is acted on.

A partition belongs to one member of a group at a time. Hash ``<prefix>:<topic>:owners:<group>`` holds for partition P
the fields ``P`` (the token of the tenure, ``member:epoch``), ``P:until`` (when others may take it, milliseconds on the
server's clock) and ``P:epoch``. Whatever a member reads or acknowledges is compared with the token in the same step:
that is the fence. A lease that ran out costs nothing until somebody takes the partition.

All members of a group read as one consumer of the Redis group: who holds the partition finds what its predecessor left
pending by reading its "own" history, in order, and no names of dead consumers pile up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.text.encode(), usedforsecurity=False).hexdigest())


# KEYS: streams. ARGV, four for each message: the number of its stream, key, value, headers.
# Gives the indexes of those that failed, each followed by the error. A key's later ones fail with the first.
PUBLISH: Final = Script("""
local failed, broken, any = {}, {}, false
for i = 1, #ARGV, 4 do
  local stream = KEYS[tonumber(ARGV[i])]
  local problem = any and broken[stream .. ' ' .. ARGV[i + 1]]
  if not problem then
    local reply = redis.pcall('XADD', stream, '0-*', 'k', ARGV[i + 1], 'v', ARGV[i + 2], 'h', ARGV[i + 3])
    problem = type(reply) == 'table' and reply.err
  end
  if problem then
    any = true
    broken[stream .. ' ' .. ARGV[i + 1]] = problem
    failed[#failed + 1] = (i - 1) / 4
    failed[#failed + 1] = problem
  end
end
return failed
""")

# KEYS: owners and stream of each partition. ARGV: group, most; then for each: partition, token, number of the last
# message seen. Gives what is pending behind that: {index, problem} or {index, entries, their delivery counts, how many
# are pending and gone, last id delivered to the group or '' while there is more}.
PENDING: Final = Script("""
local group, left, out = ARGV[1], tonumber(ARGV[2]), {}
for i = 1, #KEYS / 2 do
  local stream = KEYS[2 * i]
  if redis.call('HGET', KEYS[2 * i - 1], ARGV[3 * i]) ~= ARGV[3 * i + 1] then
    out[#out + 1] = {i, 'TAKEN'}
  elseif left > 0 then
    local after = '0-' .. ARGV[3 * i + 2]
    local reply = redis.pcall('XREADGROUP', 'GROUP', group, 'microkit', 'COUNT', left, 'STREAMS', stream, after)
    if reply.err then
      out[#out + 1] = {i, reply.err}
    else
      local found, there, counts, gone, last = reply[1][2], {}, {}, 0, ''
      for _, entry in ipairs(found) do
        if entry[2] then
          there[#there + 1] = entry
        else
          gone = gone + 1
          redis.call('XACK', stream, group, entry[1])
        end
      end
      if #there > 0 then
        for _, each in ipairs(redis.call('XPENDING', stream, group, there[1][1], there[#there][1], #there)) do
          counts[#counts + 1] = each[4]
        end
      end
      if #found < left then
        for _, each in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
          local info = {}
          for at = 1, #each, 2 do info[each[at]] = each[at + 1] end
          if info.name == group then last = info['last-delivered-id'] end
        end
      end
      out[#out + 1] = {i, there, counts, gone, last}
      left = left - #there
    end
  end
end
return out
""")

# KEYS: owners and stream of each partition. ARGV: group; then for each: partition, token, number of ids, the ids.
# Gives for each whether the token was still the partition's.
ACK: Final = Script("""
local out, at = {}, 2
for i = 1, #KEYS / 2 do
  local number = tonumber(ARGV[at + 2])
  out[i] = redis.call('HGET', KEYS[2 * i - 1], ARGV[at]) == ARGV[at + 1] and 1 or 0
  if out[i] == 1 then
    for first = at + 3, at + 2 + number, 1000 do
      local last = math.min(first + 999, at + 2 + number)
      redis.call('XACK', KEYS[2 * i], ARGV[1], unpack(ARGV, first, last))
    end
  end
  at = at + 3 + number
end
return out
""")

# KEYS: owners, members, the streams of all partitions. ARGV: group, member, lease (ms), whether to take more; then
# partition and token of what the member holds. Extends it, and takes free partitions up to a fair share.
# Gives {share, partitions that are lost, {partition, token, last id delivered, '' without a group} of the taken}.
BALANCE: Final = Script("""
local owners, members, group, member = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local until_ = string.format('%.0f', now + tonumber(ARGV[3]))
redis.call('ZREMRANGEBYSCORE', members, '-inf', string.format('%.0f', now))
redis.call('ZADD', members, until_, member)
redis.call('PEXPIRE', members, 2 * tonumber(ARGV[3]))
local names = redis.call('ZRANGE', members, 0, -1)
table.sort(names)
local rank = 0
for i, name in ipairs(names) do if name == member then rank = i end end
local total = #KEYS - 2
local share = math.floor(total / #names)
if rank <= total % #names then share = share + 1 end
local held, mine, lost, taken = 0, {}, {}, {}
for i = 5, #ARGV, 2 do
  if redis.call('HGET', owners, ARGV[i]) == ARGV[i + 1] then
    redis.call('HSET', owners, ARGV[i] .. ':until', until_)
    mine[ARGV[i]] = true
    held = held + 1
  else
    lost[#lost + 1] = tonumber(ARGV[i])
  end
end
for p = 0, total - 1 do
  if held >= share or ARGV[4] == '0' then break end
  local name = tostring(p)
  local token = redis.call('HGET', owners, name)
  local expired = tonumber(redis.call('HGET', owners, name .. ':until') or '0') < now
  if not mine[name] and (not token or expired or string.sub(token, 1, #member + 1) == member .. ':') then
    token = member .. ':' .. redis.call('HINCRBY', owners, name .. ':epoch', 1)
    redis.call('HSET', owners, name, token, name .. ':until', until_)
    held = held + 1
    local last = ''
    local groups = redis.pcall('XINFO', 'GROUPS', KEYS[3 + p])
    for _, each in ipairs(groups.err and {} or groups) do
      local info = {}
      for i = 1, #each, 2 do info[each[i]] = each[i + 1] end
      if info.name == group then last = info['last-delivered-id'] end
    end
    taken[#taken + 1] = {p, token, last}
  end
end
return {share, lost, taken}
""")

# KEYS: owners, members. ARGV: member, whether it leaves the group; then partition and token of what it gives up.
RELEASE: Final = Script("""
for i = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i], ARGV[i] .. ':until')
  end
end
if ARGV[2] == '1' then redis.call('ZREM', KEYS[2], ARGV[1]) end
""")

# KEYS: owners, the streams of all partitions. ARGV: group. Makes the group where it is missing, beginning with the
# oldest message that is there, and ends tenures from before. Gives the partitions in which there had been one.
CREATE: Final = Script("""
local again = {}
for i = 2, #KEYS do
  local first = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
  local start = first and '0-' .. string.format('%.0f', tonumber(string.sub(first[1], 3)) - 1) or '$'
  local reply = redis.pcall('XGROUP', 'CREATE', KEYS[i], ARGV[1], start, 'MKSTREAM')
  if not reply.err then
    local name = tostring(i - 2)
    if redis.call('HEXISTS', KEYS[1], name .. ':epoch') == 1 then again[#again + 1] = i - 2 end
    redis.call('HDEL', KEYS[1], name, name .. ':until')
  elseif string.sub(reply.err, 1, 9) ~= 'BUSYGROUP' then
    return reply
  end
end
return again
""")

# KEYS: streams. ARGV: group, how many done messages to keep. Trims below what the slowest group has not done.
# Gives for each stream how many messages the group will never see because they are gone from its end.
TRIM: Final = Script("""
local function number(id) return tonumber(string.sub(id, 3)) end
local function map(flat)
  local made = {}
  for i = 1, #flat, 2 do made[flat[i]] = flat[i + 1] end
  return made
end
local out = {}
for i, stream in ipairs(KEYS) do
  out[i] = 0
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if not groups.err and #groups > 0 then
    local floor, delivered = nil, nil
    for _, each in ipairs(groups) do
      local info = map(each)
      local open = number(info['last-delivered-id']) + 1
      if info.name == ARGV[1] then delivered = open - 1 end
      if info.pending > 0 then open = number(redis.call('XPENDING', stream, info.name)[2]) end
      if not floor or open < floor then floor = open end
    end
    floor = floor - tonumber(ARGV[2])
    if floor > 1 then
      redis.call('XTRIM', stream, 'MINID', '~', '0-' .. string.format('%.0f', floor), 'LIMIT', 0)
    end
    if delivered and redis.call('XLEN', stream) == 0 then
      local last = map(redis.call('XINFO', 'STREAM', stream))['last-generated-id']
      if number(last) > delivered then
        out[i] = number(last) - delivered
        redis.call('XGROUP', 'SETID', stream, ARGV[1], last)
      end
    end
  end
end
return out
""")

# KEYS: streams. ARGV: group. Gives for each how many messages the group has not acknowledged.
LAG: Final = Script("""
local function number(id) return tonumber(string.sub(id, 3)) end
local function map(flat)
  local made = {}
  for i = 1, #flat, 2 do made[flat[i]] = flat[i + 1] end
  return made
end
local out = {}
for i, stream in ipairs(KEYS) do
  out[i] = redis.call('XLEN', stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, each in ipairs(groups.err and {} or groups) do
    local info = map(each)
    if info.name == ARGV[1] then
      local last = map(redis.call('XINFO', 'STREAM', stream))['last-generated-id']
      out[i] = number(last) - number(info['last-delivered-id']) + info.pending
    end
  end
end
return out
""")

# KEYS: streams of one topic. Gives {how many messages there are, names of groups}.
DESCRIBE: Final = Script("""
local total, names, seen = 0, {}, {}
for _, stream in ipairs(KEYS) do
  total = total + redis.call('XLEN', stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, each in ipairs(groups.err and {} or groups) do
    for i = 1, #each, 2 do
      if each[i] == 'name' and not seen[each[i + 1]] then
        seen[each[i + 1]] = true
        names[#names + 1] = each[i + 1]
      end
    end
  end
end
return {total, names}
""")
