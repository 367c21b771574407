# fish completion for vmservice(1). It reads the configurations' names and asks systemd; no Python is started.

# __vmservice_names KIND…: the names of the VMs that are
#   configured   have a configuration
#   known        have one, or a unit that systemd has loaded
#   stopped      have one, and a unit that is not active
#   active       have a unit that is active, starting or stopping
#   running, paused and so on    have such a unit and are in that state
function __vmservice_names
    set -l folder /etc/vmservice
    set -l user
    if contains -- --user (commandline -opc)
        set user --user
        set folder ~/.config/vmservice
        set -q XDG_CONFIG_HOME; and set folder $XDG_CONFIG_HOME/vmservice
    end
    set -l configured
    for file in $folder/*.toml $folder/*.toml.d/*.toml
        set -a configured (string replace -r '^([^/]*)\.toml(\.d/.*)?$' '$1' -- (string replace -- $folder/ '' $file))
    end
    # An empty line ends each unit. The status text of a VM begins with its state: "running; 1 vCPU, 256 MiB".
    set -l known $configured
    set -l active
    set -l found
    set -l name ''
    set -l word ''
    set -l is_active no
    for line in (systemctl $user show --property=Id,ActiveState,StatusText 'vm@*.service' 2>/dev/null) ''
        switch $line
            case 'Id=*'
                set name (string replace -r '^Id=vm@(.*)\.service$' '$1' -- $line)
            case ActiveState=inactive ActiveState=failed
                set is_active no
            case 'ActiveState=*'
                set is_active yes
            case 'StatusText=*'
                set word (string replace -r '^StatusText=([^;]*).*' '$1' -- $line)
            case ''
                if test -n "$name"
                    set -a known $name
                    if test $is_active = yes
                        set -a active $name
                        contains -- "$word" $argv; and set -a found $name
                    end
                end
                set name ''
                set word ''
                set is_active no
        end
    end
    contains configured $argv; and set -a found $configured
    contains known $argv; and set -a found $known
    contains active $argv; and set -a found $active
    if contains stopped $argv
        for name in $configured
            contains -- $name $active; or set -a found $name
        end
    end
    for name in $found
        contains -- $name (commandline -opc); or echo $name
    end | sort -u
end

# Whether the first operand of the command is still to be typed.
function __vmservice_first
    set -l words
    set -l skip no
    for word in (commandline -opc)[2..-1]
        if test $skip = yes
            set skip no
            continue
        end
        switch $word
            case --bus --config --cpus --delay --from-root --image --lines --memory --network --size --sort --ssh-key --timeout --user-data -n
                set skip yes
            case '-*'
            case '*'
                set -a words $word
        end
    end
    test (count $words) -le 1
end

function __vmservice_login
    set -l login (string match -r '^.*@' -- (commandline -ct))
    for name in (__vmservice_names running)
        echo $login$name
    end
end

complete -c vmservice -f
complete -c vmservice -s h -l help -d 'Show help'
complete -c vmservice -n __fish_use_subcommand -l version -d 'Show the version'
complete -c vmservice -n __fish_use_subcommand -l user -d 'The VMs of systemctl --user'
complete -c vmservice -n __fish_use_subcommand -l json -d 'Write JSON'
complete -c vmservice -n __fish_use_subcommand -l no-ask-password -d 'Do not ask for a password'

complete -c vmservice -n __fish_use_subcommand -a boot -d 'Start the guest of a VM, or resume a paused one'
complete -c vmservice -n __fish_use_subcommand -a check-config -d 'Check a configuration and every file that it names'
complete -c vmservice -n __fish_use_subcommand -a check-host -d 'Say what this host can run, and what is missing'
complete -c vmservice -n __fish_use_subcommand -a console -d 'Join this terminal to a console of a VM'
complete -c vmservice -n __fish_use_subcommand -a create -d 'Make a VM of a disk image, or of the files of a system'
complete -c vmservice -n __fish_use_subcommand -a delete -d 'Remove a VM that was made by create, with its disk'
complete -c vmservice -n __fish_use_subcommand -a edit -d 'Edit the configuration of a VM, check it, and offer a reload'
complete -c vmservice -n __fish_use_subcommand -a list -d 'List VMs'
complete -c vmservice -n __fish_use_subcommand -a logs -d 'Show what the journal has of a VM'
complete -c vmservice -n __fish_use_subcommand -a pause -d 'Stop every vCPU and every device'
complete -c vmservice -n __fish_use_subcommand -a power-button -d 'Press the power button, and leave what follows to the guest'
complete -c vmservice -n __fish_use_subcommand -a poweroff -d 'Power the guest off and wait until it is'
complete -c vmservice -n __fish_use_subcommand -a reboot -d 'Power the guest off, wait until it is, and start it again'
complete -c vmservice -n __fish_use_subcommand -a reset -d 'Reset the VM at once, as by the reset button'
complete -c vmservice -n __fish_use_subcommand -a resize -d 'Have the guest take vCPUs, or give them back'
complete -c vmservice -n __fish_use_subcommand -a restart -d 'Stop the unit of a VM and start it again'
complete -c vmservice -n __fish_use_subcommand -a resume -d 'Let a paused VM run again'
complete -c vmservice -n __fish_use_subcommand -a run -d 'Run a VM in the foreground'
complete -c vmservice -n __fish_use_subcommand -a shutdown -d 'Ask the guest to power itself off, without waiting for it'
complete -c vmservice -n __fish_use_subcommand -a ssh -d 'A shell in the guest, or a command there'
complete -c vmservice -n __fish_use_subcommand -a start -d 'Start the unit of a VM'
complete -c vmservice -n __fish_use_subcommand -a status -d 'Show a VM, its unit and its last lines'
complete -c vmservice -n __fish_use_subcommand -a stop -d 'Stop the unit of a VM; the guest is powered off'
complete -c vmservice -n __fish_use_subcommand -a top -d 'A live table of what each VM uses and does'
complete -c vmservice -n __fish_use_subcommand -a update-kernel -d 'Take the kernel out of the disk of a VM anew'
complete -c vmservice -n __fish_use_subcommand -a wait -d 'Wait until a VM is in a state'

complete -c vmservice -n '__fish_seen_subcommand_from boot check-config console create delete edit list logs pause power-button poweroff reboot reset resize restart resume run shutdown ssh start status stop top update-kernel wait' -l user -d 'The VMs of systemctl --user'
complete -c vmservice -n '__fish_seen_subcommand_from check-host list status top' -l json -d 'Write JSON'
complete -c vmservice -n '__fish_seen_subcommand_from boot pause power-button poweroff reboot reset resize restart resume shutdown start stop' -l no-ask-password -d 'Do not ask for a password'
complete -c vmservice -n '__fish_seen_subcommand_from poweroff reboot wait' -l timeout -x -d 'Give up after so many seconds'
complete -c vmservice -n '__fish_seen_subcommand_from poweroff' -l force -d 'Stop it at once, without asking the guest'
complete -c vmservice -n '__fish_seen_subcommand_from list' -l all -d 'Also what only is configured, or has failed'
complete -c vmservice -n '__fish_seen_subcommand_from top' -l delay -x -d 'How often, in seconds'
complete -c vmservice -n '__fish_seen_subcommand_from top' -l once -d 'Show it once'
complete -c vmservice -n '__fish_seen_subcommand_from top' -l sort -x -a 'cpu memory exits disk network name' -d 'What it is sorted by'
complete -c vmservice -n '__fish_seen_subcommand_from delete' -l yes -d 'Do not ask'
complete -c vmservice -n '__fish_seen_subcommand_from logs' -s f -l follow -d 'Go on with each line as it comes'
complete -c vmservice -n '__fish_seen_subcommand_from logs' -s n -l lines -x -d 'Only the last entries'
complete -c vmservice -n '__fish_seen_subcommand_from run' -l config -r -F -d 'Read this configuration instead'
complete -c vmservice -n '__fish_seen_subcommand_from run' -l bus -x -a 'system session none' -d 'The bus on which the object appears'
complete -c vmservice -n '__fish_seen_subcommand_from run' -l no-boot -d 'Stay in state created until Boot is called'
complete -c vmservice -n '__fish_seen_subcommand_from run' -l sim -d 'A simulated machine, without KVM'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l image -r -F -d 'A disk with Linux on it'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l from-root -r -F -d 'The files of a system'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l size -x -d 'Make the disk as large as that'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l cpus -x -d 'How many vCPUs it starts with'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l memory -x -d 'How much memory it has'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l network -x -a 'passt tap tap= bridge= none' -d 'Its network'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l ssh-key -r -F -d 'A public key for root'
complete -c vmservice -n '__fish_seen_subcommand_from create' -l user-data -r -F -d 'What cloud-init is to do'

complete -c vmservice -n '__fish_seen_subcommand_from boot' -a '(__vmservice_names created paused shutdown)'
complete -c vmservice -n '__fish_seen_subcommand_from check-config; and __vmservice_first' -F -a '(__vmservice_names configured)'
complete -c vmservice -n '__fish_seen_subcommand_from edit; and __vmservice_first' -a '(__vmservice_names configured)'
complete -c vmservice -n '__fish_seen_subcommand_from delete' -a '(__vmservice_names configured)'
complete -c vmservice -n '__fish_seen_subcommand_from logs; and __vmservice_first' -a '(__vmservice_names known)'
complete -c vmservice -n '__fish_seen_subcommand_from run update-kernel; and __vmservice_first' -a '(__vmservice_names stopped)'
complete -c vmservice -n '__fish_seen_subcommand_from console; and __vmservice_first' -a '(__vmservice_names active)'
complete -c vmservice -n '__fish_seen_subcommand_from console; and not __vmservice_first' -a 'serial hvc'
complete -c vmservice -n '__fish_seen_subcommand_from resize; and __vmservice_first' -a '(__vmservice_names running)'
complete -c vmservice -n '__fish_seen_subcommand_from ssh; and __vmservice_first' -a '(__vmservice_login)'
complete -c vmservice -n '__fish_seen_subcommand_from start' -a '(__vmservice_names stopped)'
complete -c vmservice -n '__fish_seen_subcommand_from pause power-button shutdown' -a '(__vmservice_names running)'
complete -c vmservice -n '__fish_seen_subcommand_from resume' -a '(__vmservice_names paused)'
complete -c vmservice -n '__fish_seen_subcommand_from poweroff reboot reset restart stop' -a '(__vmservice_names active)'
complete -c vmservice -n '__fish_seen_subcommand_from status wait' -a '(__vmservice_names known)'
complete -c vmservice -n '__fish_seen_subcommand_from wait; and not __vmservice_first' -a 'created running paused shutdown'
