# bash completion for vmctl(8): commands, options and their values, paths, and the machines that vmd knows.

# The names of machines, one a line; nothing at all when there is no daemon. $1: vmctl, then its arguments.
_vmctl_machines() {
    timeout 2 "$@" 2>/dev/null </dev/null | awk 'NR > 1 { print $NF }'
}

_vmctl_reply() {
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$1" -- "$cur"))
}

_vmctl_files() {
    local IFS=$'\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$cur"))
}

_vmctl() {
    local vmctl=$1 cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local commands='console load log pause reload reset run show start status stop unpause wait'
    local socket=() command= operands=0 index word
    COMPREPLY=()

    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        case $word in
        -s) index=$((index + 1)) socket=(-s "${COMP_WORDS[index]}") ;;
        -B | -b | -d | -i | -m | -n | -p | -r | -t | --initrd | --module | --cmdline | --engine | --cpu | --debug-exit)
            # `status -r` takes no value, and what has none in front of a command is none of ours.
            case $command:$word in
            status:-r | :*) ;;
            *) index=$((index + 1)) ;;
            esac ;;
        -*) ;;
        *)
            if [[ -z $command ]]; then
                # A command may be shortened.
                case $word in show) command=status ;; help) command=help ;; *)
                    command=$(compgen -W "$commands" -- "$word")
                    [[ $'\n'$command$'\n' == *$'\n'"$word"$'\n'* ]] && command=$word
                    [[ $command == show ]] && command=status
                esac
            else
                operands=$((operands + 1))
            fi ;;
        esac
    done

    case $prev in -s) _vmctl_files; return ;; esac

    if [[ -z $command ]]; then
        if [[ $cur == -* ]]; then _vmctl_reply $'-h\n-s\n-v\n--help'; else _vmctl_reply "${commands// /$'\n'}"$'\nhelp'; fi
        return
    fi

    case $command:$prev in
    start:-B) _vmctl_reply $'disk\ncdrom\nnet'; return ;;
    start:-t) _vmctl_reply "$(_vmctl_machines "$vmctl" "${socket[@]}" status)"; return ;;
    start:-b | start:-d | start:-r | start:--initrd | run:-b | run:-d | run:-r | run:--initrd | run:--module) _vmctl_files; return ;;
    start:--engine | run:--engine) _vmctl_reply $'auto\nkvm\ntranslator'; return ;;
    start:--cpu | run:--cpu) _vmctl_reply $'host\nx86-64\nx86-64-v2\nx86-64-v3\nx86-64-v4'; return ;;
    start:-m | run:-m) _vmctl_reply $'128M\n256M\n512M\n1G\n2G\n4G'; return ;;
    start:-i | start:-n | start:-p | start:--cmdline | run:--cmdline | run:--debug-exit) return ;;
    esac

    if [[ $cur == -* ]]; then
        local options=$'-h\n-s\n-v\n--help'
        case $command in
        run) options=$'-b\n-d\n-h\n-m\n-r\n-v\n--cmdline\n--cpu\n--debug-exit\n--engine\n--help\n--initrd\n--module' ;;
        start) options+=$'\n-B\n-b\n-c\n-d\n-i\n-L\n-m\n-n\n-p\n-r\n-t\n--cmdline\n--cpu\n--engine\n--initrd' ;;
        status) options+=$'\n-j\n-r' ;;
        stop) options+=$'\n-a\n-f\n-w' ;;
        help) return ;;
        esac
        _vmctl_reply "$options"
        return
    fi

    ((operands == 0)) || return
    case $command in
    start | status) _vmctl_reply "$(_vmctl_machines "$vmctl" "${socket[@]}" status)" ;;
    console | pause | stop | unpause | wait) _vmctl_reply "$(_vmctl_machines "$vmctl" "${socket[@]}" status -r)" ;;
    load) _vmctl_files ;;
    log) _vmctl_reply $'brief\nverbose' ;;
    reset) _vmctl_reply $'all\nswitches\nvms' ;;
    help) _vmctl_reply "${commands// /$'\n'}" ;;
    esac
}

complete -F _vmctl vmctl
