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

# Images' files, and machines. $1: vmctl, then its arguments.
_vmctl_disks() {
    local IFS=$'\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$cur") $(compgen -W "$(_vmctl_machines "$@")" -- "$cur"))
}

_vmctl() {
    local vmctl=$1 cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local commands='cdrom console create export image load log pause reload reset rollback rollforward run show snapshot start'
    commands+=' status stop unpause wait'
    local socket=() command= verb= operands=0 index word
    COMPREPLY=()

    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        case $word in
        # The size of a new image, or vmd's socket.
        -s) index=$((index + 1)); [[ $command == create ]] || socket=(-s "${COMP_WORDS[index]}") ;;
        --allow-base | --cluster-size | --compression | --disk | --refcount-bits) index=$((index + 1)) ;;
        -B | -b | -d | -i | -m | -n | -p | -r | -t | --initrd | --module | --cmdline | --engine | --cpu | --debug-exit)
            # `status -r` takes no value, and what has none in front of a command is none of ours.
            case $command:$word in
            status:-r | :*) ;;
            rollforward:-* | snapshot:-d | image:-[!b]) ;;
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
                ((operands > 0)) || verb=$word
                operands=$((operands + 1))
            fi ;;
        esac
    done

    case $command:$prev in create:-s) _vmctl_reply $'1G\n10G\n50G'; return ;; *:-s) _vmctl_files; return ;; esac

    if [[ -z $command ]]; then
        if [[ $cur == -* ]]; then _vmctl_reply $'-h\n-s\n-v\n--help'; else _vmctl_reply "${commands// /$'\n'}"$'\nhelp'; fi
        return
    fi

    case $command:$prev in
    start:-B | run:-B) _vmctl_reply $'disk\ncdrom\nnet'; return ;;
    start:-t) _vmctl_reply "$(_vmctl_machines "$vmctl" "${socket[@]}" status)"; return ;;
    start:-b | start:-d | start:-r | start:--initrd | run:-b | run:-d | run:-r | run:--initrd | run:--module) _vmctl_files; return ;;
    start:--engine | run:--engine) _vmctl_reply $'auto\nkvm\ntranslator'; return ;;
    start:--cpu | run:--cpu) _vmctl_reply $'host\nx86-64\nx86-64-v2\nx86-64-v3\nx86-64-v4'; return ;;
    start:-m | run:-m) _vmctl_reply $'128M\n256M\n512M\n1G\n2G\n4G'; return ;;
    create:-b | create:-i | image:-b | *:--allow-base) _vmctl_files; return ;;
    *:--cluster-size) _vmctl_reply $'4K\n64K\n1M\n2M'; return ;;
    *:--compression) _vmctl_reply $'zlib\nzstd'; return ;;
    *:--refcount-bits) _vmctl_reply $'1\n2\n4\n8\n16\n32\n64'; return ;;
    export:-m) _vmctl_reply $'128M\n256M\n512M\n1G\n2G\n4G'; return ;;
    export:-n | *:--disk) return ;;
    start:-i | start:-n | start:-p | start:--cmdline | run:--cmdline | run:--debug-exit) return ;;
    esac

    if [[ $cur == -* ]]; then
        local options=$'-h\n-s\n-v\n--help'
        case $command in
        run) options=$'-B\n-b\n-d\n-h\n-m\n-r\n-v\n--cmdline\n--cpu\n--debug-exit\n--engine\n--help\n--initrd\n--module' ;;
        create) options=$'-b\n-c\n-h\n-i\n-s\n-v\n--allow-base\n--cluster-size\n--compression\n--help\n--refcount-bits' ;;
        cdrom) options+=$'\n-f' ;;
        export) options+=$'\n-c\n-m\n-n\n--allow-base' ;;
        image) options+=$'\n-b\n-c\n-j\n-k\n-l\n-u\n--allow-base\n--chain\n--cluster-size\n--compression\n--disk'
            options+=$'\n--refcount-bits\n--shrink' ;;
        rollback) options+=$'\n--allow-base' ;;
        rollforward) options+=$'\n-f\n--allow-base' ;;
        snapshot) options+=$'\n-d\n-j\n--allow-base' ;;
        start) options+=$'\n-B\n-b\n-c\n-d\n-i\n-L\n-m\n-n\n-p\n-r\n-t\n--cmdline\n--cpu\n--engine\n--initrd' ;;
        status) options+=$'\n-j\n-r' ;;
        stop) options+=$'\n-a\n-f\n-w' ;;
        help) return ;;
        esac
        _vmctl_reply "$options"
        return
    fi

    case $command in
    image | snapshot)
        if ((operands > 0)); then
            if ((operands == 1)); then
                _vmctl_disks "$vmctl" "${socket[@]}" status
            elif [[ $verb == convert ]]; then
                _vmctl_files
            fi
        elif [[ $command == image ]]; then
            _vmctl_reply $'check\ncommit\nconvert\ninfo\nmap\nrebase\nrepair\nresize'
        else
            _vmctl_reply $'apply\ncreate\ndelete\nlist'
        fi
        return ;;
    cdrom)
        case $operands:$verb in
        0:*) _vmctl_reply $'eject\ninsert\nshow' ;;
        1:*) _vmctl_reply "$(_vmctl_machines "$vmctl" "${socket[@]}" status -r)" ;;
        2:insert) _vmctl_files ;;
        esac
        return ;;
    export) if ((operands == 0)); then _vmctl_disks "$vmctl" "${socket[@]}" status; else _vmctl_files; fi; return ;;
    esac

    ((operands == 0)) || return
    case $command in
    start | status) _vmctl_reply "$(_vmctl_machines "$vmctl" "${socket[@]}" status)" ;;
    console | pause | stop | unpause | wait) _vmctl_reply "$(_vmctl_machines "$vmctl" "${socket[@]}" status -r)" ;;
    rollback | rollforward) _vmctl_disks "$vmctl" "${socket[@]}" status ;;
    create | load) _vmctl_files ;;
    log) _vmctl_reply $'brief\nverbose' ;;
    reset) _vmctl_reply $'all\nswitches\nvms' ;;
    help) _vmctl_reply "${commands// /$'\n'}" ;;
    esac
}

complete -F _vmctl vmctl
