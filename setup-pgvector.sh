#!/usr/bin/env bash
# A system PostgreSQL with pgvector >= 0.8.4, a role for you and a database `rag`. Can be repeated.
set -euo pipefail

readonly MIN_PGVECTOR=0.8.4
readonly DATABASE=rag
readonly PGDG_SCRIPT=/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh
PG_MAJOR=${PG_MAJOR:-18}
DRY_RUN=false
OWNER=${SUDO_USER:-$(id -un)} # under sudo, the person who called it
PORT=""                       # set where the server was found
SOCKET_DIR=""
unset PGHOST PGUSER PGDATABASE PGSERVICE # the server meant here is the local one
cd /                                     # a folder that the user postgres can enter

usage() {
  cat <<HELP
Usage: ./setup-pgvector.sh [--dry-run] [--help]

Sets up PostgreSQL $PG_MAJOR with pgvector >= $MIN_PGVECTOR on Debian, Ubuntu or macOS (Homebrew), creates a role
named after you and a database '$DATABASE' that it owns, and prints the DATABASE_URL to export.
What is there already is kept; the script can be repeated.

  --dry-run    print the commands that change something, run none of them
  --help       this text

Environment:
  PG_MAJOR     PostgreSQL's major version (default 18)
  PGPASSWORD   where set, becomes the role's password, and the URL goes through TCP; otherwise the role has
               no password and connects through the local socket as its operating system user
HELP
}

fail() { # expected / found / what to do, in one line
  echo "error: $*" >&2
  exit 1
}

run() {
  echo "+ $*" >&2
  $DRY_RUN || "$@"
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then run "$@"; else run sudo "$@"; fi
}

superuser_psql() { # psql [OPTION...] as PostgreSQL's superuser, SQL on standard input
  local command=(psql -X -q -At -v ON_ERROR_STOP=1 -p "$PORT" "$@")
  if [ "$(uname -s)" = Darwin ]; then
    "${command[@]}"
  elif [ "$(id -u)" -eq 0 ]; then
    env -u PGPASSWORD runuser -u postgres -- "${command[@]}"
  else
    env -u PGPASSWORD sudo -u postgres "${command[@]}"
  fi
}

is_at_least() { # VERSION MINIMUM
  [ -n "$1" ] && [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

announce_sudo() {
  [ "$(id -u)" -ne 0 ] || return 0
  echo "sudo is used to: install PostgreSQL $PG_MAJOR and pgvector with apt-get, add the PostgreSQL project's own" >&2
  echo "apt repository if the distribution's packages are too old, start the cluster, and run psql as 'postgres'." >&2
  $DRY_RUN || command -v sudo >/dev/null ||
    fail "expected root or sudo, found neither; run this as root or install sudo"
}

# Debian and Ubuntu

apt_candidate() { # version apt would install, without epoch and packaging suffix; empty where it knows none
  apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | sed -e 's/(none)//' -e 's/^[0-9]*://' -e 's/[-+~].*//'
}

has_packages() {
  is_at_least "$(apt_candidate "postgresql-$PG_MAJOR")" "$PG_MAJOR" &&
    is_at_least "$(apt_candidate "postgresql-$PG_MAJOR-pgvector")" "$MIN_PGVECTOR"
}

is_installed() {
  local version
  dpkg-query -W -f='${db:Status-Status}' "postgresql-$PG_MAJOR" 2>/dev/null | grep -qx installed || return 1
  version=$(dpkg-query -W -f='${Version}' "postgresql-$PG_MAJOR-pgvector" 2>/dev/null | sed 's/[-+~].*//') || return 1
  is_at_least "$version" "$MIN_PGVECTOR"
}

install_on_debian() {
  announce_sudo
  if is_installed; then
    echo "PostgreSQL $PG_MAJOR and pgvector are installed" >&2
    return
  fi
  as_root apt-get update -qq
  if ! has_packages; then
    as_root apt-get install -y -qq ca-certificates postgresql-common
    as_root "$PGDG_SCRIPT" -y
    as_root apt-get update -qq
    $DRY_RUN || has_packages ||
      fail "expected the packages postgresql-$PG_MAJOR and postgresql-$PG_MAJOR-pgvector >= $MIN_PGVECTOR, found" \
        "pgvector '$(apt_candidate "postgresql-$PG_MAJOR-pgvector")'; set PG_MAJOR to a version that apt has"
  fi
  as_root apt-get install -y -qq "postgresql-$PG_MAJOR" "postgresql-$PG_MAJOR-pgvector"
}

start_on_debian() {
  local cluster status
  if $DRY_RUN && ! command -v pg_lsclusters >/dev/null; then
    PORT=5432
    return
  fi
  find_cluster() { pg_lsclusters -h | awk -v major="$PG_MAJOR" '$1 == major { print $2, $3, $4; exit }'; }
  read -r cluster PORT status <<<"$(find_cluster)" || true
  if [ -z "$cluster" ]; then
    as_root pg_createcluster "$PG_MAJOR" main
    cluster=main
    status=down
    if $DRY_RUN; then PORT="<port of the new cluster>"; else read -r cluster PORT status <<<"$(find_cluster)"; fi
  fi
  case $status in
    online*) ;;
    *) as_root pg_ctlcluster "$PG_MAJOR" "$cluster" start ;;
  esac
}

# macOS

install_on_macos() {
  $DRY_RUN || command -v brew >/dev/null || fail "expected Homebrew, found no brew; install it from https://brew.sh"
  run brew install "postgresql@$PG_MAJOR" pgvector
  run brew services start "postgresql@$PG_MAJOR"
  PORT=${PGPORT:-5432}
  $DRY_RUN && return
  PATH="$(brew --prefix "postgresql@$PG_MAJOR")/bin:$PATH"
  export PATH PGDATABASE=postgres
  for _ in $(seq 30); do
    pg_isready -q -p "$PORT" && return
    sleep 1
  done
  fail "expected a server on port $PORT within 30 s, found none; see 'brew services list', or set PGPORT"
}

# Role, database, extension

check_server() {
  $DRY_RUN && return
  local server
  server=$(superuser_psql -d postgres <<<"show server_version")
  [ "${server%%.*}" = "$PG_MAJOR" ] ||
    fail "expected PostgreSQL $PG_MAJOR on port $PORT, found $server; stop the other server, or set PG_MAJOR"
  SOCKET_DIR=$(superuser_psql -d postgres <<<"show unix_socket_directories" | sed 's/,.*//')
}

create_role_and_database() {
  echo "+ psql: role \"$OWNER\", database \"$DATABASE\", extension vector (what is there already is kept)" >&2
  $DRY_RUN && return
  superuser_psql -v owner="$OWNER" -v database="$DATABASE" -d postgres <<'SQL'
select format('create role %I login', :'owner')
 where not exists (select from pg_roles where rolname = :'owner') \gexec
select format('create database %I owner %I', :'database', :'owner')
 where not exists (select from pg_database where datname = :'database') \gexec
SQL
  if [ -n "${PGPASSWORD:-}" ]; then # through standard input, so that no process list shows it
    printf "alter role \"%s\" password '%s';\n" "${OWNER//\"/\"\"}" "${PGPASSWORD//\'/\'\'}" | superuser_psql -d postgres
  fi
  superuser_psql -d "$DATABASE" <<'SQL'
set client_min_messages = warning;
create extension if not exists vector;
alter extension vector update;
SQL
}

database_url() {
  if [ -n "${PGPASSWORD:-}" ]; then
    echo "postgresql://$OWNER@localhost:$PORT/$DATABASE"
  else
    echo "postgresql:///$DATABASE?host=$SOCKET_DIR&port=$PORT"
  fi
}

check() {
  local version url command
  url=$(database_url)
  command=(psql -X -At -d "$url" -c "select extversion from pg_extension where extname = 'vector'")
  [ "$(id -un)" = "$OWNER" ] || command=(runuser -u "$OWNER" -- "${command[@]}")
  version=$("${command[@]}") ||
    fail "expected to connect to $url as $OWNER, found the refusal above; check pg_hba.conf"
  is_at_least "$version" "$MIN_PGVECTOR" ||
    fail "expected pgvector >= $MIN_PGVECTOR, found '$version'; upgrade the package and run this again"
  echo "PostgreSQL $PG_MAJOR with pgvector $version" >&2
  [ -z "${PGPASSWORD:-}" ] || echo "keep PGPASSWORD set; it is not part of the URL" >&2
  echo "export DATABASE_URL='$url'"
}

main() {
  for argument in "$@"; do
    case $argument in
      --help | -h)
        usage
        exit
        ;;
      --dry-run) DRY_RUN=true ;;
      *)
        echo "error: expected --dry-run or --help, found '$argument'; see --help" >&2
        exit 2
        ;;
    esac
  done
  [[ $PG_MAJOR =~ ^[0-9]+$ ]] || fail "expected PG_MAJOR to be a number, found '$PG_MAJOR'; try PG_MAJOR=18"
  case $(uname -s) in
    Darwin) install_on_macos ;;
    Linux)
      command -v apt-get >/dev/null ||
        fail "expected Debian, Ubuntu or macOS, found a system without apt-get; install pgvector >= $MIN_PGVECTOR with its own tools and set DATABASE_URL"
      install_on_debian
      start_on_debian
      ;;
    *) fail "expected Linux or macOS, found $(uname -s); set DATABASE_URL to a server elsewhere" ;;
  esac
  check_server
  create_role_and_database
  if $DRY_RUN; then
    SOCKET_DIR="<socket folder>"
    echo "+ verify pgvector >= $MIN_PGVECTOR, then print: export DATABASE_URL='$(database_url)'" >&2
  else
    check
  fi
}

main "$@"
